"""Names of earlier versions and what they are called now, so that an old name is refused with the new one.

Only names that a person writes: settings, options, commands, finding codes and columns. Data and one function.
"""

from __future__ import annotations

from collections.abc import Mapping

OPTIONS = {"--accept-vanished": "--accept-missing", "--readmit": "--undo"}
COMMANDS = {"forget": "withdraw", "outcomes": "uploads"}


def describe_rename(renames: Mapping[str, str], name: str, kind: str) -> str | None:
    """The sentence that refuses a name of an earlier version; None where it is not one.

    Args:
        renames: old name -> new name: one of the tables of this module.
        name: as a person wrote it.
        kind: of the name, as a message calls it.

    Returns:
        for example `option --accept-vanished is now --accept-missing`.
    """
    new = renames.get(name)
    return f"{kind} {name} is now {new}" if new else None
