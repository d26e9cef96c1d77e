"""Where tiles lie, as the setting ``tiles`` says it: a template, ``remote``, or both with a comma between."""

from __future__ import annotations

import re
from functools import lru_cache

#: Where tiles lie, below the root of the lake or anywhere: a template.
TILES = "cache/s2/{scene_id}/{band}.tif"

#: Instead of a template, or after it and a comma: tiles that are not there are read at their address.
REMOTE = "remote"

# A template: any folder, a folder for each scene, a file for each band.
_TEMPLATE = re.compile(r"(?:([^{}]*)/)?\{scene_id\}/\{band\}(\.[A-Za-z0-9]{1,8})", re.ASCII)


class TemplateError(ValueError):
    """A template of tile paths that cannot be used."""


def template_and_remote(setting: str | None) -> tuple[str, bool]:
    """The template of a setting, and whether tiles that are not there are read at their address."""
    template = (setting or TILES).removesuffix(f",{REMOTE}")
    if template == REMOTE:
        return TILES, True
    return template or TILES, template != (setting or TILES)


@lru_cache
def folder_and_suffix(template: str) -> tuple[str, str]:
    """The folder and the suffix of a template. Raises :class:`TemplateError`."""
    found = _TEMPLATE.fullmatch(template.strip())
    if found is None or ".." in (found[1] or "").split("/"):
        raise TemplateError(
            f"tiles={template!r} is not a template of tile paths; a template is a folder, then {{scene_id}}/{{band}} and a suffix, e.g. "
            f"{TILES} (in the lake), /data/{{scene_id}}/{{band}}.jp2 or s3://bucket/{{scene_id}}/{{band}}.tif"
        )
    return found[1] or ("/" if template.startswith("/") else ""), found[2]
