"""Whether there is a lake at a location: light, so that a command without a lake does not load what reads tables."""

from __future__ import annotations

from pathlib import Path

DESCRIPTION_FILE = "lake.json"


def has_lake(root: str) -> bool:
    """Whether the folder or URL contains a lake."""
    if "://" not in root:
        return Path(root, DESCRIPTION_FILE).exists()
    from upath import UPath  # noqa: PLC0415  (fsspec is heavy, and only object stores need it)

    return bool((UPath(root) / DESCRIPTION_FILE).exists())
