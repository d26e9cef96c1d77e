"""The partitions of everything that is made per acquisition timestamp."""

import dagster as dg

#: Keys are the texts of ``acq_datetime``; the ``time_serie`` asset registers them.
timestamps = dg.DynamicPartitionsDefinition(name="timestamp")
