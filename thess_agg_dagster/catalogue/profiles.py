"""The STAC APIs known by name: their addresses, and how to download their files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Profile:
    """A STAC API with Sentinel-2 Level-2A scenes. (``scene`` and ``item_asset`` know the names of items and assets.)"""

    url: str
    collection: str = "sentinel-2-l2a"
    #: Where its files lie: what ``download_from`` and ``download_token_url`` are, unless configured otherwise.
    download_from: tuple[str, ...] = ()
    token_url: str | None = None


PROFILES: Mapping[str, Profile] = MappingProxyType(
    {
        # Item ids are product names. Assets B04_10m, B04_20m, ..., SCL_20m: s3://eodata, and by https with a token.
        "copernicus": Profile(
            "https://stac.dataspace.copernicus.eu/v1",
            download_from=("download.dataspace.copernicus.eu", "zipper.dataspace.copernicus.eu"),
            token_url="https://identity.dataspace.copernicus.eu/auth/realms/CDSE/protocol/openid-connect/token",
        ),
        # Ids as S2B_35TKF_20230202_0_L2A, `s2:product_uri` has the name. Assets red, nir, scl (COG), red-jp2, ...
        "earth-search": Profile(
            "https://earth-search.aws.element84.com/v1",
            download_from=(
                "sentinel-cogs.s3.us-west-2.amazonaws.com",
                "e84-earth-search-sentinel-data.s3.us-west-2.amazonaws.com",
            ),
        ),
        # Ids without the processing baseline, `s2:product_uri` has the name. Assets B04, B08, SCL (COG), which can be
        # had with a signature only.
        "planetary-computer": Profile(
            "https://planetarycomputer.microsoft.com/api/stac/v1",
            download_from=("sentinel2l2a01.blob.core.windows.net",),
        ),
    }
)
DEFAULT = "copernicus"
