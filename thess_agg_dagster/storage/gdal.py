"""GDAL's names for files in folders and buckets, and the settings it works with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast
from urllib.parse import urlsplit

import rasterio

from thess_agg_dagster.storage.paths import File, is_remote

# What GDAL calls an object store.
_STORES = {
    "s3": "/vsis3/",
    "s3a": "/vsis3/",
    "gs": "/vsigs/",
    "gcs": "/vsigs/",
    "az": "/vsiaz/",
    "abfs": "/vsiaz/",
    "abfss": "/vsiaz/",
}

# What GDAL may look at and keep while we read and write.
GDAL_OPTIONS = {
    # A tile is one file: no .aux.xml, .ovr, .msk or world file beside it changes what it says.
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_PAM_ENABLED": "NO",
    "GDAL_GEOREF_SOURCES": "INTERNAL",
    # In bytes: no cache. Blocks are decoded once and kept by our own; what is written goes to the file at once.
    "GDAL_CACHEMAX": 1,
    # Threads are ours to spend: one block is decoded by one thread.
    "GDAL_NUM_THREADS": "1",
    # An object in a bucket may be another one the next time it is opened.
    "CPL_VSIL_CURL_NON_CACHED": ":".join(sorted(set(_STORES.values()))),
    "GDAL_HTTP_MAX_RETRY": "3",
    "GDAL_HTTP_RETRY_DELAY": "0.5",
}


@contextmanager
def gdal_env() -> Iterator[None]:
    """GDAL settings, on this thread, for all files that this package opens."""
    with rasterio.Env(**GDAL_OPTIONS, **_endpoint()):
        yield


@contextmanager
def store_env() -> Iterator[None]:
    """The settings that GDAL needs to find an object store, and its defaults otherwise: for files that users keep
    reading."""
    with rasterio.Env(**_endpoint()):
        yield


def gdal_name(path: File) -> str:
    """GDAL's name for a file: its path, or ``/vsis3/bucket/key`` for one in an object store (a ``upath.UPath``).

    Buckets are read by range requests. GDAL looks for credentials in the usual places; :func:`gdal_env` and
    :func:`store_env` set the endpoint.
    """
    store = _STORES.get(getattr(path, "protocol", ""))
    return str(path) if store is None else f"{store}{cast(Any, path).path}"


def may_misjudge(path: File) -> bool:
    """Whether what GDAL takes for a broken file may be a broken connection; a :func:`local_copy` tells."""
    return is_remote(path)


def tell_all_of_the_endpoint() -> None:
    """Set GDAL's endpoints outside :func:`store_env`, too, and permanently: for files opened later on other threads
    (dask)."""
    for name, value in _endpoint().items():
        os.environ.setdefault(name, value)


def _endpoint() -> dict[str, str]:
    """What the environment tells the stores' own libraries, in GDAL's words; what is said in those counts."""
    found = {
        theirs: os.environ[name]
        for name, theirs in {
            "AZURE_STORAGE_ACCOUNT_NAME": "AZURE_STORAGE_ACCOUNT",
            "AZURE_STORAGE_ACCOUNT_KEY": "AZURE_STORAGE_ACCESS_KEY",
        }.items()
        if os.environ.get(name)
    }
    url = urlsplit(os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "")
    if url.netloc:
        found |= {
            "AWS_S3_ENDPOINT": url.netloc + url.path.rstrip("/"),
            "AWS_HTTPS": "NO" if url.scheme == "http" else "YES",
            "AWS_VIRTUAL_HOSTING": "FALSE",
        }
    if emulator := os.environ.get("STORAGE_EMULATOR_HOST"):
        found |= {"CPL_GS_ENDPOINT": emulator.rstrip("/") + "/", "GS_NO_SIGN_REQUEST": "YES"}
    return {name: os.environ.get(name, value) for name, value in found.items()}
