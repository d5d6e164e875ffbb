"""Shards: which file of the lake contains the rows of a unit.

A unit is processed and retried independently of others; a shard stores many units, so that the cost of a dataset is in
proportion to its files and not to its units. The shard and row group of a unit depend only on the inventory, so that
the bytes of a lake depend only on its input.

Not here: files and their commits (`lake.commits`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

SHARD_ROWS = 20_000
GROUP_ROWS = 2_500


def choose_shard_count(unit_rows: Iterable[int]) -> int:
    """The number of shards of a dataset: a power of two, so that a shard has about 20,000 rows at most.

    Args:
        unit_rows: the number of files of each unit. A unit counts as one shard at most, since it is never divided.
    """
    rows = sum(min(count, SHARD_ROWS) for count in unit_rows)
    return 1 << max(0, -(-rows // SHARD_ROWS) - 1).bit_length()


def assign_shard(unit: str, shards: int) -> int:
    """The shard of a unit. With twice as many shards it is the same one, or its number is greater by `shards`."""
    digest = hashlib.blake2b(unit.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % shards


def list_previous_shards(shard: int, shards: int, previous: int) -> range:
    """The shards that contained the units of a shard before the number of shards changed.

    Args:
        shard: the number of the shard.
        shards: how many shards there are.
        previous: how many there were.
    """
    return range(shard % previous, shard % previous + 1) if previous <= shards else range(shard, previous, shards)


def choose_row_groups(unit_rows: Sequence[int]) -> list[int]:
    """The sizes of the row groups of a shard.

    Whole units share a row group if they fit into `GROUP_ROWS`. A larger unit has row groups of its own, of about that
    size, or of `SHARD_ROWS` if the unit is larger than a shard, so that the footer stays small.

    Args:
        unit_rows: the number of rows of each unit, in the order of units.
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
