"""Pixels: tiles in, one mosaic out, window by window.

Knows neither Dagster nor the lake: paths and options in, a GeoTIFF out.
"""
