"""One clean Sentinel-2 mosaic per acquisition timestamp and band, as Dagster assets."""

__version__ = "0.2.0"
