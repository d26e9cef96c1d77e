"""What Dagster shows: assets, checks, sensors, jobs, the IO manager."""
