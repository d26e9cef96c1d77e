"""From an area and two dates to the list of acquisitions: which scenes there are, which belong together, which to take.

Knows no Dagster: a script can use it (:func:`thess_agg_dagster.catalogue.update.update_catalogue`).
"""
