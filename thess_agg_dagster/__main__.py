"""``python -m thess_agg_dagster``: see :mod:`thess_agg_dagster.runs.command`."""

import gc
import multiprocessing
from multiprocessing import forkserver


def main() -> None:
    # Workers are forked from a server that imports what they need, on another core, while this process does the same.
    multiprocessing.get_context("forkserver").set_forkserver_preload(["thess_agg_dagster.runs.batch"])
    forkserver.ensure_running()

    from thess_agg_dagster.runs import catalogue_command  # noqa: F401  (a subcommand of main)
    from thess_agg_dagster.runs.command import main

    gc.freeze()  # modules live as long as the process: collecting them would take half a second at its end
    main()


if __name__ == "__main__":
    main()
