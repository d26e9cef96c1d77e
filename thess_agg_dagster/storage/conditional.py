"""Objects in a store that are replaced only if no one else has done so in the meantime."""

from __future__ import annotations

import errno
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from thess_agg_dagster.storage.paths import as_os_errors, is_remote

# HTTP: another request of the same time was first; the condition does not hold.
_REFUSED = (409, 412)


def version_of(path: Path) -> str | None:
    """The version that a store gives for an object, or ``None`` if there is no object, or no store. Raises ``OSError``."""
    if not is_remote(path):
        return None
    with suppress(FileNotFoundError), as_os_errors(path):
        info = cast(Any, path).fs.info(cast(Any, path).path)
        return str(info.get("ETag") or info.get("etag") or "")
    return None


def put_if(path: Path, data: bytes, version: str | None) -> bool:
    """Write an object if it still has this version (``None``: if it does not exist). Returns whether it was written.

    A store without conditional writes always writes it. Raises ``OSError``.
    """
    store, where = cast(Any, path).fs, cast(Any, path).path
    try:
        with as_os_errors(path):
            if cast(Any, path).protocol in ("gs", "gcs") and version and version_of(path) != version:
                return False  # its library has no condition for this: we can but look first
            store.pipe_file(where, data, **_condition(cast(Any, path).protocol, version))
    except (FileExistsError, FileNotFoundError):
        return False
    except OSError as error:
        if error.errno == errno.ENOSYS:
            store.pipe_file(where, data)
        elif (status := _status(error)) in _REFUSED:
            return False
        elif status in (401, 403):
            raise PermissionError(errno.EACCES, str(error), str(path)) from error
        else:
            raise
    return True


def _condition(protocol: str, version: str | None) -> dict[str, Any]:
    """As the store's library calls it."""
    if protocol in ("s3", "s3a"):
        return {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}
    if version is None:
        return {"mode": "create"}
    if protocol in ("az", "abfs", "abfss", "adl"):
        from azure.core import MatchConditions  # what adlfs is built on

        return {"etag": version, "match_condition": MatchConditions.IfNotModified}
    return {}


def _status(error: BaseException) -> int | None:
    """The HTTP status in an error, as botocore and azure store it."""
    cause = error.__cause__
    response = getattr(cause, "response", None)
    if isinstance(response, dict):
        return cast(int | None, response.get("ResponseMetadata", {}).get("HTTPStatusCode"))
    return getattr(cause, "status_code", None)
