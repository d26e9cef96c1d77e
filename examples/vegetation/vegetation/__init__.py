"""Vegetation over time: a project of its own, downstream of a lake's mosaics."""
