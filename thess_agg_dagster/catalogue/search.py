"""Searching a STAC API: every item over an area and a time, page by page, with retries."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import requests
import shapely
from pystac.errors import STACError
from pystac_client import Client
from pystac_client.exceptions import APIError
from pystac_client.stac_api_io import StacApiIO
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential
from urllib3 import Retry

from thess_agg_dagster.catalogue.area import SearchArea

_PAGE = 100
_ATTEMPTS = 6
_TIMEOUT = (10.0, 120.0)
_LONGEST_WAIT = 300

#: Called with the items that came so far, and how many there are, where the server tells.
SearchProgress = Callable[[int, int | None], None]


class CatalogueError(Exception):
    """The catalogue cannot be reached or used; the text says which, why, and what to do."""


class _CutError(Exception):
    """An answer that is not whole."""


class _PatientIO(StacApiIO):
    """Requests that are made again: where the server is busy or broken (when it says), where an answer comes cut."""

    def __init__(self, first_wait: float) -> None:
        busy = Retry(
            total=_ATTEMPTS - 1,
            connect=2,  # an address where nobody is, is told soon
            backoff_factor=first_wait,
            backoff_jitter=first_wait,
            status_forcelist=(408, 425, 429, 500, 502, 503, 504),
            allowed_methods=None,  # a search by POST changes nothing
            respect_retry_after_header=True,
            retry_after_max=_LONGEST_WAIT,
        )
        super().__init__(max_retries=busy, timeout=_TIMEOUT)
        self.session.auth = lambda request: request  # or requests looks for passwords in ~/.netrc
        self._first_wait = first_wait

    def request(self, *args: Any, **kwargs: Any) -> str:
        patience = Retrying(
            stop=stop_after_attempt(_ATTEMPTS),
            wait=wait_random_exponential(self._first_wait),
            retry=retry_if_exception_type(_CutError),
            reraise=True,
        )
        return str(patience(self._whole, *args, **kwargs))

    def _whole(self, *args: Any, **kwargs: Any) -> str:
        try:
            text = super().request(*args, **kwargs)
        except APIError as error:
            if isinstance(error.__context__, requests.exceptions.ChunkedEncodingError):
                raise _CutError(str(error)) from error
            raise
        try:
            json.loads(text)
        except ValueError as error:
            raise _CutError(f"an answer is not JSON ({error})") from error
        return text


def find_items(
    url: str,
    collection: str,
    area: SearchArea,
    between: tuple[datetime, datetime],
    progress: SearchProgress = lambda found, of: None,
    first_wait: float = 1.0,
) -> Iterator[dict[str, Any]]:
    """Every item of a collection over an area and a time, possibly with duplicates. Raises :class:`CatalogueError`."""
    came, matched = 0, 0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pystac, about what a server says of itself
            client = Client.open(url, stac_io=_PatientIO(first_wait))
            for piece in area.pieces:
                search = client.search(
                    method="POST",
                    collections=[collection],
                    intersects=shapely.geometry.mapping(piece),
                    datetime=between,
                    limit=_PAGE,
                )
                told = False
                for page in search.pages_as_dicts():
                    if not told:
                        number = page.get("numberMatched", (page.get("context") or {}).get("matched"))
                        matched, told = matched + (number if isinstance(number, int) else 0), True
                    features = [item for item in page.get("features") or () if isinstance(item, dict)]
                    came += len(features)
                    progress(came, matched if matched >= came else None)
                    yield from features
    except (
        APIError,
        STACError,
        _CutError,
        NotImplementedError,
        requests.RequestException,
        KeyError,
        TypeError,
    ) as error:
        raise CatalogueError(f"{url}: {_said(error)}; try again later, or another --profile or --stac-url") from error


def _said(error: BaseException) -> str:
    """The text of the first of a chain of errors: pystac wraps the server's answer."""
    while isinstance(error.__cause__ or error.__context__, STACError | APIError | _CutError):
        error = error.__cause__ or error.__context__ or error
    status = getattr(error, "status_code", None)
    text = " ".join(str(error).split())[:300] or type(error).__name__
    return f"the server answers {status} ({text})" if status else text
