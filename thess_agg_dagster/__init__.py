"""One clean Sentinel-2 mosaic per acquisition timestamp and band, as Dagster assets."""

from importlib import import_module

__version__ = "0.2.0"

# The component that `defs.yaml` names as `thess_agg_dagster.ThessLake`. Few who import this package need it, or Dagster.
_COMPONENT = "ThessLake"


def __getattr__(name: str) -> object:
    if name == _COMPONENT:
        return getattr(import_module("thess_agg_dagster.defs.component"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), _COMPONENT]
