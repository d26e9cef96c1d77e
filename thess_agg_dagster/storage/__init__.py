"""Local or remote: the only floor that knows where a file is."""
