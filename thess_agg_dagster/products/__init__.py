"""What stands beside the mosaics: STAC items, provenance, pictures, the series as one array."""
