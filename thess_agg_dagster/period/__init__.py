"""One period: its composites are planned and built from the mosaics of its timestamps. Knows no Dagster."""
