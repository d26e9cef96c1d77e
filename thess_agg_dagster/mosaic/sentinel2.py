"""Sentinel-2 Level-2A: everything in this package that is true of its products and of no other.

Sources: ESA's Sentinel-2 Products Specification Document (bands, nodata, offset, scale) and Level-2A Algorithm Theoretical
Basis Document (classes and their colours); Earth Search (common names).
"""

from __future__ import annotations

import re

from thess_agg_dagster.mosaic.sensor import Band, Sensor

SENTINEL_2 = Sensor(
    bands={
        "B01": Band("reflectance", 60, "coastal"),
        "B02": Band("reflectance", 10, "blue"),
        "B03": Band("reflectance", 10, "green"),
        "B04": Band("reflectance", 10, "red"),
        "B05": Band("reflectance", 20, "rededge1"),
        "B06": Band("reflectance", 20, "rededge2"),
        "B07": Band("reflectance", 20, "rededge3"),
        "B08": Band("reflectance", 10, "nir"),
        "B8A": Band("reflectance", 20, "nir08"),
        "B09": Band("reflectance", 60, "nir09"),
        "B10": Band("reflectance", 60),
        "B11": Band("reflectance", 20, "swir16"),
        "B12": Band("reflectance", 20, "swir22"),
        "SCL": Band("classes", 20, "scl"),
        "QA60": Band("classes"),
        "CLASSI": Band("classes"),
        "AOT": Band("quantity"),
        "WVP": Band("quantity"),
        "CLD": Band("quantity"),
        "SNW": Band("quantity"),
        "TCI": Band("unknown"),
    },
    red="B04",
    nir="B08",
    # Vegetation in red, else as the eye sees it.
    pictures=(("B08", "B04", "B04"), ("B04", "B03", "B02")),
    class_band="SCL",
    classes={
        0: ("no data", "#000000"),
        1: ("saturated or defective", "#ff0000"),
        2: ("dark area", "#2f2f2f"),
        3: ("cloud shadow", "#643200"),
        4: ("vegetation", "#00a000"),
        5: ("not vegetated", "#ffe65a"),
        6: ("water", "#0000ff"),
        7: ("unclassified", "#808080"),
        8: ("cloud, medium probability", "#c0c0c0"),
        9: ("cloud, high probability", "#ffffff"),
        10: ("thin cirrus", "#64c8ff"),
        11: ("snow or ice", "#ff96ff"),
    },
    clouds=(8, 9, 10),  # a cloud's shadow is none
    nodata=0,  # written outside the swath, without a tag
    lattice=60,
    scale=0.0001,
    # Since 25 January 2022 ESA adds 1000 to the digital numbers of reflectances (RADIO_ADD_OFFSET and BOA_ADD_OFFSET of
    # -1000 in the product's metadata), so that noise around zero survives. Older acquisitions carry it, too, where they
    # were processed again (baseline 05.00 and later).
    offset=1000,
    offset_since=400,
    baseline=re.compile(r"_N(\d{4})_", re.ASCII),
    no_baseline="9999",  # Sen2Cor run by hand: any version of it
    collection="sentinel-2-l2a",
)
