"""The outcome of every attempt: records, the event log, tables."""
