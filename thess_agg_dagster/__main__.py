"""``python -m thess_agg_dagster``: see :mod:`thess_agg_dagster.runs.command`."""

import gc


def main() -> None:
    gc.disable()  # while modules are imported: nothing becomes garbage, and looking for it takes a fifth of the time
    from thess_agg_dagster.runs import catalogue_command, try_out  # noqa: F401  (subcommands of main)
    from thess_agg_dagster.runs.ahead import PIXELS
    from thess_agg_dagster.runs.command import main
    from thess_agg_dagster.runs.private.workers import serve_workers

    gc.freeze()  # modules live as long as the process: collecting them would take half a second at its end
    serve_workers(PIXELS)
    gc.enable()
    main()


if __name__ == "__main__":
    main()
