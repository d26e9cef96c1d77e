"""Files next to the mosaics: STAC items, provenance, pictures; and the series as one array."""
