"""What became of every attempt: outcomes, the event log, tables."""
