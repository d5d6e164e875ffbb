"""Shards: which file of the lake holds the rows of a unit.

A unit is what is read, built, uploaded and retried alone; a shard is where many of them are stored, so that a dataset
costs in proportion to its files and not to its units. Shard and row group of a unit depend on the inventory alone, so
the bytes of a lake depend on its input alone.

Not here: files and their commits (`lake.commits`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

SHARD_ROWS = 20_000
GROUP_ROWS = 2_500


def choose_shard_count(unit_rows: Iterable[int]) -> int:
    """The number of shards of a dataset: a power of two, so that a shard holds at most some 20,000 rows.

    Args:
        unit_rows: the number of files of each unit. A unit counts as one shard at most, since it is never divided.
    """
    rows = sum(min(count, SHARD_ROWS) for count in unit_rows)
    return 1 << max(0, -(-rows // SHARD_ROWS) - 1).bit_length()


def assign_shard(unit: str, shards: int) -> int:
    """The shard of a unit. With twice as many shards it is this one or the one `shards` further."""
    digest = hashlib.blake2b(unit.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % shards


def list_previous_shards(shard: int, shards: int, former: int) -> range:
    """The shards of `former` ones in which the units of one of `shards` were."""
    return range(shard % former, shard % former + 1) if former <= shards else range(shard, former, shards)


def choose_row_groups(unit_rows: Sequence[int]) -> list[int]:
    """The sizes of the row groups of a shard, from the rows of its units in their order.

    Whole units share a group as long as they fit into `GROUP_ROWS`. A larger unit has groups of its own: of about that
    size, or of `SHARD_ROWS` where the unit is larger than a shard, so that the footer stays small.
    """
    groups: list[int] = []
    open_rows = 0
    for rows in unit_rows:
        if open_rows and open_rows + rows > GROUP_ROWS:
            groups.append(open_rows)
            open_rows = 0
        if rows > SHARD_ROWS:
            groups += [SHARD_ROWS] * (rows // SHARD_ROWS) + [rows % SHARD_ROWS] * (rows % SHARD_ROWS > 0)
        elif rows > GROUP_ROWS:
            parts = -(-rows // GROUP_ROWS)
            groups += [rows // parts + (number < rows % parts) for number in range(parts)]
        else:
            open_rows += rows
    return [*groups, open_rows] if open_rows else groups
