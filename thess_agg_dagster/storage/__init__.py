"""Local or remote: the one floor that knows where a file lies."""
