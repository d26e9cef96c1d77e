"""Pixels: many tiles become one mosaic, window by window.

Knows neither Dagster nor the lake: the inputs are paths and options, the output is a GeoTIFF.
"""

#: Which pixels come of the same tiles and parameters. Raised when a change to the code makes other ones of input as it is
#: usually found: then, and only then, all that is published is due again.
PIXELS_VERSION = 1
#: The same of NDVI: raised only when the same bands give another one.
NDVI_VERSION = 1


class AreaError(ValueError):
    """An area of interest cannot be used."""
