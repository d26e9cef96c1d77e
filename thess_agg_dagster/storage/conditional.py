"""Objects in a store that are replaced only if no one else has done so in the meantime."""

from __future__ import annotations

import errno
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from thess_agg_dagster.storage.errors import http_status
from thess_agg_dagster.storage.paths import as_os_errors, is_remote

# HTTP: another request of the same time was first; the condition does not hold.
_REFUSED = (409, 412)
# What conditions name, as the stores' libraries call it.
_VERSIONS = ("generation", "ETag", "etag")


def version_of(path: Path) -> str | None:
    """The version that a store gives for an object, or ``None`` if there is no object, or no store. Raises ``OSError``."""
    if not is_remote(path):
        return None
    with suppress(FileNotFoundError), as_os_errors(path):
        info = cast(Any, path).fs.info(cast(Any, path).path)
        return next((str(info[name]) for name in _VERSIONS if info.get(name)), "")
    return None


def put_if(path: Path, data: bytes, version: str | None) -> bool:
    """Write an object if it still has this version (``None``: if it does not exist). Returns whether it was written.

    A store without conditional writes always writes it. Raises ``OSError``.
    """
    try:
        with as_os_errors(path):
            _put(cast(Any, path), data, version)
    except (FileExistsError, FileNotFoundError):
        return False
    except OSError as error:
        if error.errno == errno.ENOSYS:
            cast(Any, path).fs.pipe_file(cast(Any, path).path, data)
        elif (status := http_status(error)) in _REFUSED:
            return False
        elif status == 401:
            raise PermissionError(errno.EACCES, str(error), str(path)) from error
        else:
            raise
    return True


def _put(remote: Any, data: bytes, version: str | None) -> None:
    """With the condition, as the store's library calls it."""
    condition: dict[str, Any] = {"mode": "create"}
    if remote.protocol in ("s3", "s3a"):
        condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}
    elif version is not None and remote.protocol in ("gs", "gcs"):
        _put_generation(remote, data, int(version))
        return
    elif version is not None:
        from azure.core import MatchConditions  # what adlfs is built on

        condition = {"etag": version, "match_condition": MatchConditions.IfNotModified}
    remote.fs.pipe_file(remote.path, data, **condition)


def _put_generation(remote: Any, data: bytes, generation: int) -> None:
    """By Google's own library, since gcsfs has conditions for new objects only."""
    from google.cloud.storage import Client

    bucket, _, name = remote.path.partition("/")
    blob = Client(project=None, credentials=remote.fs.credentials.credentials).bucket(bucket).blob(name)
    blob.upload_from_string(data, "application/octet-stream", if_generation_match=generation)
