"""``from thess_agg_dagster.series import open_series``: the address that users' scripts know."""

from thess_agg_dagster.products.series import open_series as open_series
