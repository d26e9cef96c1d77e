"""One timestamp: what will be made of it, and whether it is due."""
