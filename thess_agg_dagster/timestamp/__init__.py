"""One timestamp: what it will be made of, and whether it is due."""
