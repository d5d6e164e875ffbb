"""Which shard and row group contains a unit: it depends only on the inventory, and never changes."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest

from dicom_etl.lake.shards import assign_shard, choose_row_groups, choose_shard_count, list_previous_shards

UNITS = ["sub-1", "sub-2", ".", "ü", "sub-1 ünïcode", "a/b", "x" * 300, "\udcff", *map(str, range(1000))]


class TestShardCount:
    @pytest.mark.parametrize(
        ("unit_rows", "shards"),
        [
            ([], 1),
            ([0], 1),
            ([1], 1),
            ([1] * 20_000, 1),
            ([1] * 20_001, 2),
            ([1] * 40_000, 2),
            ([1] * 40_001, 4),
            ([1] * 80_001, 8),
            ([1] * 100_000, 8),
            ([10_000] * 20, 16),
            ([20_000, 20_000], 2),
            ([20_000, 20_000, 1], 4),
            ([180_000], 1),  # a unit is never divided
            ([180_000, 1], 2),
            ([180_000, 180_000, 180_000], 4),
        ],
        ids=lambda value: f"{len(value)} units" if isinstance(value, list) else None,
    )
    def test_the_number_of_shards(self, unit_rows: list[int], shards: int) -> None:
        assert choose_shard_count(unit_rows) == shards

    def test_the_order_of_the_units_does_not_matter(self) -> None:
        unit_rows = [30_000, 1, 19_999, 500, 7]
        assert (
            choose_shard_count(unit_rows)
            == choose_shard_count(sorted(unit_rows))
            == choose_shard_count(iter(unit_rows[::-1]))
            == 4
        )

    def test_more_files_never_give_fewer_shards(self) -> None:
        counts = [choose_shard_count([7] * units) for units in range(0, 50_000, 997)]
        assert counts == sorted(counts)
        assert set(counts) == {1, 2, 4, 8, 16, 32}


class TestShardOfUnit:
    @pytest.mark.parametrize(
        ("unit", "shards"),
        [
            ("sub-1", [0, 1, 3, 7, 15, 31, 223]),
            ("sub-2", [0, 1, 1, 1, 1, 33, 225]),
            (".", [0, 0, 0, 4, 4, 4, 132]),
            ("ü", [0, 1, 3, 7, 7, 55, 823]),
            ("sub-1 ünïcode", [0, 1, 3, 7, 15, 47, 687]),
        ],
    )
    def test_the_shard_of_a_unit_never_changes(self, unit: str, shards: list[int]) -> None:
        assert [assign_shard(unit, count) for count in (1, 2, 4, 8, 16, 64, 1024)] == shards

    def test_a_name_that_is_not_utf_8_has_a_shard(self) -> None:
        assert assign_shard("\udcff", 64) == 17

    def test_another_process_assigns_the_same_shards(self) -> None:
        code = (
            "from dicom_etl.lake.shards import assign_shard; print([assign_shard(f'sub-{n}', 64) for n in range(100)])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == str([assign_shard(f"sub-{n}", 64) for n in range(100)])

    @pytest.mark.parametrize("shards", [1, 2, 4, 64, 512])
    def test_twice_as_many_shards_split_each_in_two(self, shards: int) -> None:
        for unit in UNITS:
            previous = assign_shard(unit, shards)
            assert assign_shard(unit, 2 * shards) in (previous, previous + shards)

    def test_units_are_spread_over_all_shards(self) -> None:
        counts = Counter(assign_shard(f"sub-{number:05}", 16) for number in range(16_000))
        assert set(counts) == set(range(16))
        assert min(counts.values()) > 850
        assert max(counts.values()) < 1_150


class TestPreviousShards:
    @pytest.mark.parametrize(
        ("shards", "previous", "expected"),
        [
            (1, 1, [[0]]),
            (4, 4, [[0], [1], [2], [3]]),
            (2, 1, [[0], [0]]),
            (4, 2, [[0], [1], [0], [1]]),
            (8, 2, [[0], [1], [0], [1], [0], [1], [0], [1]]),
            (2, 4, [[0, 2], [1, 3]]),
            (2, 8, [[0, 2, 4, 6], [1, 3, 5, 7]]),
            (1, 4, [[0, 1, 2, 3]]),
        ],
    )
    def test_the_previous_shards_of_the_units_of_a_shard(
        self, shards: int, previous: int, expected: list[list[int]]
    ) -> None:
        assert [list(list_previous_shards(shard, shards, previous)) for shard in range(shards)] == expected

    @pytest.mark.parametrize(("shards", "previous"), [(1, 8), (2, 4), (4, 4), (4, 1), (64, 8), (8, 64)])
    def test_every_unit_was_in_a_previous_shard_of_its_shard(self, shards: int, previous: int) -> None:
        for unit in UNITS:
            assert assign_shard(unit, previous) in list_previous_shards(assign_shard(unit, shards), shards, previous)


class TestRowGroups:
    @pytest.mark.parametrize(
        ("unit_rows", "groups"),
        [
            ([], []),
            ([0, 0], []),
            ([2_500], [2_500]),
            ([1_250, 1_250, 1], [2_500, 1]),
            ([2_499, 2], [2_499, 2]),  # whole units share a group
            ([3, 2_500, 3], [3, 2_500, 3]),
            ([0, 3, 0, 4], [7]),
            ([2_501], [1_251, 1_250]),  # larger than a group: groups of its own, of about the same size
            ([10_001], [2_001, 2_000, 2_000, 2_000, 2_000]),
            ([1, 5_000, 1], [1, 2_500, 2_500, 1]),
            ([20_000], [2_500] * 8),
            ([20_001], [20_000, 1]),  # larger than a shard: large groups
            ([40_000], [20_000, 20_000]),
            ([1, 45_000, 3], [1, 20_000, 20_000, 5_000, 3]),
        ],
    )
    def test_the_row_groups_of_a_shard(self, unit_rows: list[int], groups: list[int]) -> None:
        assert choose_row_groups(unit_rows) == groups

    def test_row_groups_contain_all_rows(self) -> None:
        unit_rows = [number * 37 % 6_000 for number in range(200)] + [25_000, 0, 1]
        assert sum(choose_row_groups(unit_rows)) == sum(unit_rows)
        assert max(choose_row_groups(unit_rows[:200])) <= 2_500
