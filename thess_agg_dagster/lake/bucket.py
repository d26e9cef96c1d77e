"""Publishing in a bucket, which can neither replace several objects in one step nor lock other writers out.

The files of a run are stored under a name of its own. Then the manifest, a single object, is replaced by one that names
these files, on the condition that it is still the one the run found when it was planned. So a reader who follows the
manifest sees the files of one run; if two runs overlap, one of them fails and removes what it uploaded.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from thess_agg_dagster.lake.checksums import ChangedError
from thess_agg_dagster.lake.published import ITEM, QUICKLOOK, Published, named_by, read_manifest
from thess_agg_dagster.lake.run_names import began_long_before, is_run
from thess_agg_dagster.storage.conditional import put_if
from thess_agg_dagster.storage.paths import REQUESTS, as_os_errors, read_if_there, upload


def publish_run(staged: Path, target: Path, manifest: str, replaces: str | None) -> None:
    """Upload the files of a local folder to ``target``, a run's own folder, and the one called ``manifest`` next to it.

    ``replaces`` is the version of the manifest to be replaced, or ``None`` if there was none. Raises
    :class:`ChangedError` if another run has published in the meantime, and ``OSError``; then nothing of this run
    remains, unless the store did not say whether it accepted the manifest.
    """
    place = target.parent / manifest
    data = (staged / manifest).read_bytes()
    try:
        _upload_all([file for file in staged.iterdir() if file.name != manifest], target)
        before = named_by(read_manifest(place), target.parent)
    except BaseException:
        _remove(target)
        raise
    try:
        _replace(place, data, replaces)
    except (ChangedError, PermissionError):
        _remove(target)
        raise  # after any other error the manifest may be there, or still arrive: what it names is not taken away
    _remove(target.parent, lambda name: _stays(name, target, before))


def _replace(place: Path, data: bytes, replaces: str | None) -> None:
    try:
        refused = not put_if(place, data, replaces)
    except PermissionError:
        raise
    except OSError:
        if read_if_there(place) != data:
            raise
        refused = False
    # A store that is asked again, because its answer was lost, refuses what it has taken already.
    if refused and read_if_there(place) != data:
        raise ChangedError(
            f"{place}: another run has published this timestamp in the meantime, and its mosaics stay; run it again"
        )


def _stays(name: str, target: Path, before: Published) -> bool:
    """Whether an object below the timestamp's folder is to be kept: it was neither replaced by the run of ``target``
    nor abandoned.

    A run that began a day before this one found another manifest, so it can never replace this run's.
    """
    run, below, _ = name.partition("/")
    if not below:  # as 0.1.0 put them, or somebody's own
        return before.folder != target.parent or name not in (*before.names, QUICKLOOK, ITEM)
    if not is_run(run) or run == target.name:
        return True
    return run != before.folder.name and not began_long_before(run, target.name)


def _upload_all(files: list[Path], target: Path) -> None:
    with ThreadPoolExecutor(REQUESTS) as pool:
        try:
            list(pool.map(lambda file: upload(file, target / file.name), files))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _remove(folder: Path, stays: Callable[[str], bool] = lambda _: False) -> None:
    """Remove objects below a folder but those that stay, as far as the store lets us: a later run removes the rest."""
    remote = cast(Any, folder)

    def remove(name: str) -> None:
        with suppress(OSError), as_os_errors(folder):
            remote.fs.rm_file(name)

    with suppress(OSError), as_os_errors(folder), ThreadPoolExecutor(REQUESTS) as pool:
        found = remote.fs.find(remote.path)
        list(pool.map(remove, [name for name in found if not stays(name.removeprefix(f"{remote.path}/"))]))
