"""Distinguishing faults of the system from faults of a file."""

from __future__ import annotations

import errno
import os
from typing import cast

_TRANSIENT = frozenset(
    {
        errno.EAGAIN,
        errno.EBUSY,
        errno.EIO,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
        errno.ESTALE,
        errno.ETIMEDOUT,
    }
)


class SystemFaultError(Exception):
    """A tile could not be read for now, through no fault of the file; a retry may help."""

    def __init__(self, path: object, cause: BaseException) -> None:
        super().__init__(
            f"{path}: cannot be read at the moment ({first_line(cause)}); the system is at fault, not the file: run it again"
        )


def is_transient(error: BaseException) -> bool:
    """Whether a retry may help, because the system, not the file, is at fault (too many open files, a stale mount,
    ...).

    GDAL keeps only the text of a system error, so the text is searched as well.
    """
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, SystemFaultError) or (isinstance(chain, OSError) and chain.errno in _TRANSIENT):
            return True
        if any(os.strerror(code) in str(chain) for code in _TRANSIENT):
            return True
        chain = chain.__cause__
    return False


def http_status(error: BaseException) -> int | None:
    """The HTTP status in an error of a store's library (botocore, azure, google), or in that error's cause."""
    for each in (error, error.__cause__):
        response = getattr(each, "response", None)
        if isinstance(response, dict):
            return cast(int | None, response.get("ResponseMetadata", {}).get("HTTPStatusCode"))
        for name in ("status_code", "code"):
            if isinstance(status := getattr(each, name, None), int):
                return int(status)
    return None


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
