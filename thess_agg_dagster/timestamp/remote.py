"""A lake with tiles that stay at the address given by the catalogue (``tiles=remote``)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from thess_agg_dagster.lake.download_policy import DownloadPolicy
from thess_agg_dagster.lake.layout import DataLake
from thess_agg_dagster.params import TimestampsAggregationParams
from thess_agg_dagster.storage.fingerprints import fingerprint_of
from thess_agg_dagster.storage.paths import File

if TYPE_CHECKING:
    from thess_agg_dagster.lake.download import Downloader

# What reads tiles is imported by functions: most lakes have none at addresses, and sensors look at every lake.


@lru_cache(maxsize=1)
def _downloader(policy: DownloadPolicy) -> Downloader:
    """One for all timestamps of a process: they share its token and its connections."""
    from thess_agg_dagster.lake.download import Downloader

    return Downloader(policy)


def located(lake: DataLake, params: TimestampsAggregationParams) -> DataLake:
    """The lake with tiles that are not in it at their addresses, if ``tiles=remote`` and ``download_from`` allow that."""
    if not (lake.remote and params.download_from) or isinstance(lake, _LocatedLake):
        return lake
    from thess_agg_dagster.timestamp.refetch import download_policy

    policy = download_policy(params)
    return _LocatedLake(lake.root, lake.tables, lake.tiles, lake.remote, policy=policy)


@dataclass(frozen=True)
class _LocatedLake(DataLake):
    policy: DownloadPolicy | None = None

    def source(self, scene_id: str, band: str) -> File:
        place = self.tile(scene_id, band)
        if self.policy is None or fingerprint_of(place) is not None:
            return place
        from thess_agg_dagster.lake.remote import RemoteTile
        from thess_agg_dagster.timestamp.refetch import hrefs

        for href in hrefs(self, scene_id, band):
            if urlsplit(href).scheme in ("https", "http") and self.policy.allows(href):
                return RemoteTile(place, href, _downloader(self.policy))
        return place
