"""``from thess_agg_dagster.series import open_series``: the import path used in users' scripts."""

from thess_agg_dagster.products.series import open_series as open_series
