"""Names and places: the layout of a DATA_LAKE, the list of acquisitions, and safe publishing. Knows no Dagster."""
