"""From an area and two dates to the list of acquisitions: find scenes, group them into overpasses, choose.

Independent of Dagster: a script can use it (:func:`thess_agg_dagster.catalogue.update.update_catalogue`).
"""
