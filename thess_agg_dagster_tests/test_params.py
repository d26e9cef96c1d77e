"""Parameters: names, defaults, where they come from, and errors that list what is allowed."""

from __future__ import annotations

import ast
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._config import validate_config
from dagster._core.snap.config_types import build_config_schema_snapshot
from dagster._core.snap.snap_to_yaml import default_values_yaml_from_type_snap
from pydantic import ValidationError

from thess_agg_dagster.definitions import defs
from thess_agg_dagster.defs.resources import ParamsResource
from thess_agg_dagster.mosaic import AreaError
from thess_agg_dagster.mosaic.options import MosaicOptions
from thess_agg_dagster.params import TimestampsAggregationParams, page

#: What composites ask for.
FIXED: dict[str, Any] = {"composites": "month", "grid": "fixed", "bounds": "0,0,60,60", "target_crs": "EPSG:32634"}


def test_names_and_defaults() -> None:
    params = TimestampsAggregationParams()
    assert params.bands == ["B04", "B08", "SCL"]
    assert (params.merge_method, params.resampling, params.compress) == ("first", "nearest", "zstd")
    assert math.isnan(params.nodata)
    assert (params.dtype, params.max_workers, params.threads, params.debug) == (None, None, None, False)
    assert "nodata" not in params.run_config()


def test_the_page_of_the_docs_is_what_is_declared() -> None:
    written = (Path(__file__).parents[1] / "docs" / "PARAMETERS.md").read_text()
    assert written == page(), "python -m thess_agg_dagster.params > docs/PARAMETERS.md"
    for name, each in TimestampsAggregationParams.declared().items():
        assert each.help, name
        assert written.count(f"| `{name}` |") == 1


def test_the_engine_has_the_parameters_defaults() -> None:
    options = TimestampsAggregationParams().mosaic_options()
    assert str(options) == str(MosaicOptions())  # as text: a NaN equals no other


def test_a_parameter_goes_to_the_engine_under_its_own_name() -> None:
    given: dict[str, Any] = {
        "target_crs": "EPSG:32634", "grid": "fixed", "bounds": [0, 0, 60, 60], "resolution": 20, "match_band": "B04",
        "aoi": "POLYGON ((23 40, 24 40, 23 41, 23 40))", "aoi_mask": True, "mask_scl_classes": [8, 3], "dtype": "float32",
        "missing_scl": "unmasked", "harmonize": True, "format": "cog", "merge_method": "max", "resampling": "cubic",
        "nodata": -1, "compress": "lzw", "threads": 3, "reduction": "med", "overviews": True,
    }  # fmt: skip
    options = TimestampsAggregationParams(**given).mosaic_options()
    engine = {**vars(options), **vars(options.target)}
    assert set(engine) == {*given, "target", "sizes"}
    aoi = engine.pop("aoi")
    assert (str(aoi.crs), aoi.geom.bounds) == ("EPSG:4326", (23, 40, 24, 41))
    expected = given | {"bounds": (0, 0, 60, 60), "mask_scl_classes": (3, 8)}
    assert {name: engine[name] for name in given if name != "aoi"} == {
        name: value for name, value in expected.items() if name != "aoi"
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"merge_method": "mean"}, "merge_method='mean' is not one of first, last, min, max, sum, count"),
        ({"resampling": "gauss"}, "is not one of nearest, bilinear, cubic"),
        ({"dtype": "int64"}, "is not one of uint8"),
        ({"compress": "jpeg"}, "is not one of zstd, deflate, lzw, none"),
        ({"nodata": math.inf}, "give a finite number, or NaN"),
        ({"bands": []}, "name at least one"),
        ({"bands": ["../B04"]}, "is not a plain name"),
        ({"max_workers": 0}, "give 1 or more"),
        ({"threads": -1}, "give 1 or more"),
        ({"target_crs": "EPSG:99999"}, "is not one of first, majority, and not a CRS"),
        ({"grid": "square"}, "is not one of tiles, fixed"),
        ({"grid": "fixed"}, "grid=fixed needs bounds (left, bottom, right, top) or an aoi"),
        ({"bounds": "1,2,3,4"}, "bounds are for grid=fixed"),
        ({"grid": "fixed", "bounds": "1,2,3,4"}, "bounds need target_crs, the CRS that they are in"),
        (
            {"grid": "fixed", "bounds": "3,2,1,4", "target_crs": "EPSG:32634"},
            "left must be below right and bottom below top",
        ),
        ({"bounds": "here"}, "bounds='here' are not comma-separated numbers"),
        ({"aoi_mask": True}, "aoi_mask needs an aoi"),
        ({"grid": "fixed", "bounds": "1,2,3,4", "target_crs": "EPSG:32634", "aoi": "a"}, "both define what to clip to"),
        ({"overviews": True}, "overviews are for a reduction"),
        ({"target_crs": "EPSG:4978"}, "is neither geographic nor projected"),
        ({"resolution": 0}, "resolution=0.0 is not a pixel size"),
        ({"reduction": "gauss"}, "is not one of nearest, bilinear, cubic"),
        ({"match_band": "B02"}, "match_band='B02' is not one of the bands, B04, B08, SCL"),
        ({"mask_scl_classes": "3,12"}, "12 is not a class of SCL; choose from 0 (no data), 1 (saturated"),
        ({"missing_scl": "ignore"}, "is not one of fail, unmasked"),
        ({"format": "jp2"}, "is not one of geotiff, cog"),
        ({"composites": "month,week"}, "composites: 'week' is not one of month, quarter"),
        ({"composites": "month"}, "composites need grid=fixed"),
        ({"composite_method": "mode"}, "is not one of median, mean, max_ndvi, medoid, geomedian"),
        ({"min_observations": 0}, "give 1 or more"),
        ({"ndvi": "float64"}, "is not one of float32, int16"),
        (FIXED | {"bands": "B04,count"}, "band 'count' has the name of a file of the composites"),
        (FIXED | {"bands": "B04", "ndvi": "int16"}, "ndvi needs the bands B04 and B08, there are B04"),
        (FIXED | {"bands": "B08", "composite_method": "max_ndvi"}, "composite_method=max_ndvi needs the bands"),
    ],
)
def test_errors_list_what_is_allowed(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TimestampsAggregationParams(**given)
    assert message in str(caught.value)


def test_everything_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "BANDS": "B02, B03,B02", "MERGE_METHOD": "max", "RESAMPLING": "cubic", "NODATA": "-9999", "DTYPE": "float32",
        "COMPRESS": "deflate", "MAX_WORKERS": "3", "THREADS": "2", "DEBUG": "true", "TABLES": "/elsewhere",
        "TARGET_CRS": "EPSG:32634", "GRID": "fixed", "BOUNDS": "1, 2,3,4", "AOI": "/aoi.gpkg", "AOI_MASK": "1",
        "RESOLUTION": "20", "REDUCTION": "med", "OVERVIEWS": "yes", "MATCH_BAND": "B02", "MASK_SCL_CLASSES": "9,8,3",
        "MISSING_SCL": "unmasked", "HARMONIZE": "true", "FORMAT": "cog", "STAC": "true",
        "DOWNLOAD_FROM": "a.org, s3://b", "DOWNLOAD_TOKEN_URL": "https://a.org/t", "DOWNLOAD_CLIENT_ID": "me",
        "DOWNLOAD_CONNECTIONS": "2", "DROP_BANDS": "1", "PROVENANCE": "1", "SEAMS": "yes", "METRICS": "on",
        "COMPOSITES": "quarter, month", "COMPOSITE_METHOD": "mean", "MIN_OBSERVATIONS": "3", "QUARTER_STANDS_IN": "1",
        "NDVI": "",
    }  # fmt: skip
    for name, value in given.items():
        monkeypatch.setenv(f"THESS_{name}", value)
    assert TimestampsAggregationParams().run_config() == {
        "bands": ["B02", "B03"], "merge_method": "max", "resampling": "cubic", "nodata": -9999, "dtype": "float32",
        "compress": "deflate", "max_workers": 3, "threads": 2, "debug": True,
        "target_crs": "EPSG:32634", "grid": "fixed", "bounds": [1, 2, 3, 4], "aoi": "/aoi.gpkg", "aoi_mask": True,
        "resolution": 20, "reduction": "med", "overviews": True, "match_band": "B02", "mask_scl_classes": [3, 8, 9],
        "missing_scl": "unmasked", "harmonize": True, "format": "cog", "stac": True,
        "download_from": ["a.org", "s3://b"], "download_token_url": "https://a.org/t", "download_client_id": "me",
        "download_connections": 2, "drop_bands": True, "provenance": True, "seams": True, "metrics": True,
        "composites": ["month", "quarter"], "composite_method": "mean", "min_observations": 3, "quarter_stands_in": True,
    }  # fmt: skip
    assert TimestampsAggregationParams(merge_method="min").merge_method == "min"


def test_empty_variables_are_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    default = TimestampsAggregationParams().pixel_identity()
    monkeypatch.setenv("THESS_BANDS", " ")
    monkeypatch.setenv("THESS_NODATA", "")
    assert TimestampsAggregationParams().pixel_identity() == default


def test_a_bad_variable_is_an_error_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THESS_RESAMPLING", "smooth")
    with pytest.raises(ValidationError, match="is not one of nearest, bilinear"):
        TimestampsAggregationParams()


def test_run_config_overrides_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THESS_BANDS", "B02")
    monkeypatch.setenv("THESS_MERGE_METHOD", "max")
    seen = []

    @dg.asset
    def probe(params: ParamsResource) -> None:
        seen.append((params.bands, params.merge_method))

    dg.materialize(
        [probe],
        resources={"params": ParamsResource()},
        run_config={"resources": {"params": {"config": {"bands": ["B11"]}}}},
    )
    assert seen == [(["B11"], "max")]


def test_the_launchpad_offers_closed_lists_and_shows_the_parameters() -> None:
    """As its editor checks what is typed, before anything is launched."""
    job = defs.resolve_implicit_global_asset_job_def()

    def errors(**given: str) -> list[str]:
        found = validate_config(job.run_config_schema.config_type, {"resources": {"params": {"config": given}}})
        return [error.message for error in found.errors or ()]

    for name in ("merge_method", "resampling", "reduction", "dtype", "compress", "grid", "missing_scl", "format"):
        (error,) = errors(**{name: "maxi"})
        assert "maxi" in error
    assert errors(merge_method="max", resampling="cubic", dtype="float32", compress="none", grid="fixed") == []
    schema, root = build_config_schema_snapshot(job), job.run_config_schema.config_type
    shown = yaml.safe_load(default_values_yaml_from_type_snap(schema, schema.get_config_snap(str(root.key))))
    assert shown["resources"]["params"]["config"] == TimestampsAggregationParams().run_config()


def test_groups_owners_and_freshness_from_the_environment() -> None:
    look = (
        "from thess_agg_dagster.definitions import defs; specs = defs.resolve_all_asset_specs();"
        "print({s.key.to_user_string(): (s.group_name, list(s.owners), sorted(s.kinds), str(s.freshness_policy)[:4])"
        " for s in specs})"
    )

    def seen(**environment: str) -> dict[str, Any]:
        command = [sys.executable, "-c", look]
        done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""  # no warning greets whoever starts `dagster dev`
        found: dict[str, Any] = ast.literal_eval(done.stdout)
        return found

    assert seen() == {
        "catalogue": ("inputs", [], ["stac"], "None"),
        "time_serie": ("inputs", [], ["csv"], "None"),
        "cache/s2": ("inputs", [], ["geotiff"], "None"),
        "data_raw/aggregated": ("mosaics", [], ["geotiff"], "None"),
        "data_raw/aggregated_by_period": ("mosaics", [], ["geotiff"], "None"),
        "data_raw/composites": ("mosaics", [], ["geotiff"], "None"),
        "timestamps_aggregation": ("audit", [], ["csv"], "None"),
        "published_mosaics": ("audit", [], ["geotiff"], "None"),
    }
    given = {"THESS_OWNERS": "me@example.org, team:eo", "THESS_LIST_MAX_AGE_HOURS": "24", "THESS_LAKE": "crete"}
    given["THESS_TIMESTAMPS_PER_RUN"] = "2"
    found = seen(**given)
    assert found["crete/time_serie"] == ("crete_inputs", ["me@example.org", "team:eo"], ["csv"], "Time")
    assert found["crete/data_raw/aggregated"][:2] == ("crete_mosaics", ["me@example.org", "team:eo"])


def test_what_decides_the_pixels() -> None:
    base = TimestampsAggregationParams()
    same = TimestampsAggregationParams(
        max_workers=3, threads=1, debug=True, stac=True, bands=["B02"], resampling="nearest"
    )
    other = TimestampsAggregationParams(nodata=0)
    assert base.pixel_identity() == same.pixel_identity() == "{}" != other.pixel_identity()
    assert json.loads(base.as_json())["nodata"] == "nan"


def test_what_decides_composites_decides_no_mosaic() -> None:
    base, asked = TimestampsAggregationParams(grid="fixed", bounds=[0, 0, 60, 60], target_crs="EPSG:32634"), FIXED
    other = TimestampsAggregationParams(**asked, composite_method="medoid", min_observations=1, ndvi="int16")
    assert base.pixel_identity() == other.pixel_identity()
    assert base.as_json() == other.as_json()
    assert base.composite_identity() == TimestampsAggregationParams(**asked).composite_identity() == "{}"
    assert json.loads(other.composite_identity()) == {
        "composite_method": "medoid", "min_observations": 1, "ndvi": "int16",
    }  # fmt: skip
    assert json.loads(TimestampsAggregationParams(**asked, format="cog").composite_identity()) == {"format": "cog"}


def test_an_area_counts_by_its_shape(tmp_path: Path) -> None:
    wkt = "POLYGON ((23 40, 24 40, 23 41, 23 40))"
    (tmp_path / "a.wkt").write_text(wkt)
    (tmp_path / "b.wkt").write_text(wkt.replace("41", "42"))
    a, b = (TimestampsAggregationParams(aoi=str(tmp_path / name)).pixel_identity() for name in ("a.wkt", "b.wkt"))
    assert a == TimestampsAggregationParams(aoi=wkt).pixel_identity() != b
    with pytest.raises(AreaError, match="cannot be found"):
        TimestampsAggregationParams(aoi="gone.geojson").mosaic_options()
