"""A dataset whose number of shards changes: the same bytes as in a new lake, and no unchanged file is opened."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dicom_etl.lake import shard_writer
from dicom_etl.lake.commits import read_commits
from dicom_etl.lake.schemas import FILES, Table, header_table
from dicom_etl.lake.shard_reader import read_unit
from dicom_etl.lake.shards import assign_shard
from dicom_etl.lake.tables import Lake
from tests.stages.test_build import with_corrections, with_crosswalk
from tests.stages.test_extract import WatchedSource, extract_from, replace_bytes, rows, run
from tests.support.datasets import Tree, make_lake, make_tree, touch
from tests.support.kill import KilledError

SHARD_ROWS, GROUP_ROWS, CHUNK_FILES = 8, 3, 4
FOLDER_RENAMES = 10  # five folders of a stage, each with two: of the old folder, and of the new one


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight one-file units fill a shard."""
    for module in ("dicom_etl.lake.shards", "dicom_etl.extraction.assembly"):
        monkeypatch.setattr(f"{module}.SHARD_ROWS", SHARD_ROWS)
    monkeypatch.setattr("dicom_etl.lake.shards.GROUP_ROWS", GROUP_ROWS)
    monkeypatch.setattr("dicom_etl.extraction.chunks.PART_FILES", CHUNK_FILES)
    monkeypatch.setattr("dicom_etl.extraction.chunks.CHUNK_FILES", CHUNK_FILES)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    tree = make_tree(tmp_path)
    tree.sheet("subjects", *({"subject id": name(number), "sex": "Female"} for number in range(64)))
    return tree


def name(number: int) -> str:
    return f"sub-{number:02}"


def add(tree: Tree, numbers: Iterable[int], **tags: Any) -> list[str]:
    """Write subjects of one file each, every fifth with an unusable StudyDate and without sex; returns their paths."""
    paths = []
    for number in numbers:
        odd = number % 5 == 4
        path = tree.write(
            f"{name(number)}/1.dcm", **{"PatientID": f"P-{number}", "PatientSex": "" if odd else "F", **tags}
        )
        if odd:
            replace_bytes(path, b"20240105", b"20240230")
        paths.append(f"{name(number)}/1.dcm")
    return sorted(paths)


def remove(tree: Tree, numbers: Iterable[int]) -> None:
    for number in numbers:
        (tree.root / f"primary/{name(number)}/1.dcm").unlink()


NOT_COMPARED = ("locks/", "lake.json", "findings/crawl")  # the second has a random id, the last is of the last crawl


def content(lake: Lake) -> dict[str, bytes]:
    """All files of the lake, except those that may differ between lakes."""
    root = Path(lake.root)
    paths = {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*")) if path.is_file()}
    return {path: file.read_bytes() for path, file in paths.items() if not path.startswith(NOT_COMPARED)}


def in_a_new_lake(tree: Tree, tmp_path: Path, number: Iterator[int] = itertools.count()) -> dict[str, bytes]:  # noqa: B008
    """The content of a new lake of the tree."""
    fresh = Tree(
        tree.root, make_lake(tmp_path / f"fresh-{next(number)}"), tree.name, tree.settings, tree.dataset_settings
    )
    fresh.run()
    return content(fresh.lake)


def assert_same(tree: Tree, tmp_path: Path) -> None:
    actual, expected = content(tree.lake), in_a_new_lake(tree, tmp_path)
    assert actual.keys() == expected.keys()
    assert [path for path in actual if actual[path] != expected[path]] == []


def committed(tree: Tree) -> dict[str, dict[str, Any]]:
    """The row of each unit in the commits of the extraction."""
    commits = read_commits(tree.lake, "extract", "ds").values()
    return {unit: row for commit in commits for unit, row in commit.rows.items()}


def shards(tree: Tree) -> tuple[int, int]:
    """The numbers of shards of both stages."""
    [[extract], [build]] = [
        {c.shards for c in read_commits(tree.lake, stage, "ds").values()} for stage in ("extract", "build")
    ]
    return extract, build


def remote_content(lake: Lake) -> dict[str, bytes]:
    """The same as `content`, for an object store."""
    paths = {
        path.path.removeprefix(lake.root_path.path).lstrip("/"): path
        for path in lake.root_path.rglob("*")
        if path.is_file()
    }
    return {path: paths[path].read_bytes() for path in sorted(paths) if not path.startswith(NOT_COMPARED)}


class TestGrowingAndShrinking:
    def test_each_step_gives_the_bytes_of_a_new_lake(self, tree: Tree, tmp_path: Path) -> None:
        previous = 0
        for units, count in [(6, 1), (12, 2), (20, 4), (40, 8), (20, 4), (40, 8), (12, 2), (6, 1), (40, 8), (6, 1)]:
            added = add(tree, range(previous, units))
            remove(tree, range(units, previous))
            assert run(tree, accept_missing=True)[1] == added  # no other file is opened
            built = tree.build()
            assert (built.units, built.units_processed) == (units, len(added))
            assert shards(tree) == (count, count)
            assert_same(tree, tmp_path)
            before = content(tree.lake)
            assert (run(tree)[1], tree.build().units_processed, content(tree.lake)) == ([], 0, before)
            previous = units

    def test_changes_within_shards_give_the_bytes_of_a_new_lake(self, tree: Tree, tmp_path: Path) -> None:
        add(tree, range(40))
        tree.run()
        changed = add(tree, (3, 17, 30), StudyDescription="changed")
        remove(tree, (5, 21))
        assert run(tree, accept_missing=True)[1] == changed
        assert tree.build().units_processed == 3
        assert_same(tree, tmp_path)

    def test_the_build_follows_several_reshardings_of_the_extraction(self, tree: Tree, tmp_path: Path) -> None:
        add(tree, range(6))
        tree.run()
        for units in (12, 40):
            add(tree, range(units))
            run(tree)
        assert shards(tree) == (8, 1)
        assert tree.build().units_processed == 34
        assert_same(tree, tmp_path)

    def test_each_step_on_an_object_store_gives_the_bytes_of_a_new_lake(self, tree: Tree, tmp_path: Path) -> None:
        tree.lake = Lake(f"memory://test-resharding/{tmp_path.name}", notify=lambda _: None).open()
        previous = 0
        for units, count in [(6, 1), (20, 4), (40, 8), (12, 2), (6, 1)]:
            added = add(tree, range(previous, units))
            remove(tree, range(units, previous))
            assert run(tree, accept_missing=True)[1] == added
            assert tree.build().units_processed == len(added)
            assert shards(tree) == (count, count)
            assert remote_content(tree.lake) == in_a_new_lake(tree, tmp_path)
            previous = units


class TestSubjectsAndFailures:
    def test_rows_of_subjects_that_are_not_selected_move_unchanged(self, tree: Tree, tmp_path: Path) -> None:
        add(tree, range(6))
        tree.run()
        before = committed(tree)
        resources = {name(number): tree.resources("ImagingStudy", name(number)) for number in range(6)}
        touch(tree.write(f"{name(2)}/1.dcm", PatientID="P-2", StudyDescription="changed"))
        add(tree, range(6, 20))
        selected = [name(1), name(7)]

        assert run(tree, subjects=selected)[1] == [f"{name(7)}/1.dcm"]
        assert tree.build(subjects=selected).units_processed == 1

        assert shards(tree) == (4, 4)
        after = committed(tree)
        assert after.keys() == before.keys() | {name(7)}
        assert {unit: after[unit] for unit in before} == before
        assert rows(tree, name(2))[f"{name(2)}/1.dcm"]["StudyDescription"] is None
        assert {unit: tree.resources("ImagingStudy", unit) for unit in resources} == resources
        assert len(tree.resources("ImagingStudy", name(7))) == 1
        assert len(run(tree)[1]) == 14  # the changed one, and the thirteen new ones
        assert tree.build().units_processed == 14
        assert_same(tree, tmp_path)

    def test_a_failed_unit_moves_with_its_previous_rows(self, tree: Tree, tmp_path: Path) -> None:
        add(tree, range(6))
        tree.run()
        touch(tree.write(f"{name(2)}/1.dcm", PatientID="P-2", StudyDescription="changed"))
        add(tree, range(6, 12))
        tree.crawl()

        def fail() -> None:
            raise RuntimeError("an unexpected error")

        failing = {f"{name(2)}/1.dcm": fail, f"{name(9)}/1.dcm": fail}
        answer = extract_from(tree, WatchedSource(tree.source, before=failing))
        tree.build()

        assert (answer.units_failed, answer.units_processed) == (2, 5)
        assert shards(tree) == (2, 2)
        assert rows(tree, name(2))[f"{name(2)}/1.dcm"]["StudyDescription"] is None
        assert rows(tree, name(9)) == {}
        assert len(tree.resources("ImagingStudy", name(2))) == 1
        assert run(tree)[1] == [f"{name(2)}/1.dcm", f"{name(9)}/1.dcm"]
        assert tree.build().units_processed == 2
        assert_same(tree, tmp_path)


def large(tree: Tree, files: int) -> None:
    """A unit between the others, larger than a shard."""
    for number in range(files):
        tree.write(f"sub-03-large/{number:02}.dcm", PatientID="P-large", InstanceNumber=number)


def groups_of(lake: Lake, table: Table, shard: int) -> list[tuple[str, str, int]]:
    """First and last unit, and the number of rows, of each row group."""
    file = pq.ParquetFile(Path(lake.root, table.path(dataset="ds", shard=shard)))
    units = [file.read_row_group(n, ["unit"])["unit"].to_pylist() for n in range(file.num_row_groups)]
    return [(group[0], group[-1], len(group)) for group in units]


class TestLargeUnitsAndDuplicates:
    def test_a_unit_larger_than_a_shard_is_streamed_into_row_groups(
        self, tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        add(tree, range(6))
        large(tree, 21)
        sizes: list[int] = []
        write = shard_writer.write_row_groups

        def noting(sink: Any, table: Table, pieces: Iterable[pa.Table], *args: Any, **options: Any) -> None:
            def noted() -> Iterator[pa.Table]:
                for piece in pieces:
                    if table.name in ("headers", "files"):
                        sizes.append(piece.num_rows)
                    yield piece

            write(sink, table, noted(), *args, **options)

        monkeypatch.setattr(shard_writer, "write_row_groups", noting)
        tree.run()
        assert shards(tree) == (2, 2)  # it counts as one shard
        shard = assign_shard("sub-03-large", 2)
        for table in (header_table(), FILES):
            own = [rows for first, last, rows in groups_of(tree.lake, table, shard) if "sub-03-large" in (first, last)]
            assert own == [8, 8, 5]
        assert max(sizes) <= SHARD_ROWS
        sizes.clear()

        add(tree, range(6, 40))
        assert len(run(tree)[1]) == 34
        tree.build()
        assert shards(tree) == (8, 8)
        assert max(sizes) <= SHARD_ROWS  # also where it is moved
        assert read_unit(tree.lake, header_table(), dataset="ds", unit="sub-03-large").num_rows == 21
        assert_same(tree, tmp_path)
        (tree.root / "primary/sub-03-large/07.dcm").unlink()
        remove(tree, range(6, 40))
        assert run(tree, accept_missing=True)[1] == []
        tree.build()
        assert_same(tree, tmp_path)

    def test_a_unit_may_outgrow_a_shard_and_shrink_again(self, tree: Tree, tmp_path: Path) -> None:
        add(tree, range(10))
        for files in (3, 9, 21, 2):
            large(tree, files)
            for path in (tree.root / "primary/sub-03-large").glob("*.dcm"):
                if int(path.stem) >= files:
                    path.unlink()
            run(tree, accept_missing=True)
            tree.build()
            assert_same(tree, tmp_path)

    def test_duplicates_in_different_shards_are_flagged_wherever_they_move(self, tree: Tree, tmp_path: Path) -> None:
        add(tree, range(6))
        copies = [name(number) for number in (1, 4, 5)]
        for unit in copies:
            tree.write(
                f"{unit}/2.dcm", PatientID=f"P-{int(unit[-2:])}", instance="one", series=unit, study=f"ds/{unit}"
            )
        for units in (6, 20, 40):
            added = add(tree, range(6, units))
            run(tree)
            tree.build()
            flags = [rows(tree, unit)[f"{unit}/2.dcm"]["duplicate"] for unit in copies]
            assert flags == [None, "conflict", "conflict"], added
            assert_same(tree, tmp_path)
        assert len({assign_shard(unit, 8) for unit in copies}) > 1
        (tree.root / f"primary/{name(1)}/2.dcm").unlink()
        assert run(tree, accept_missing=True)[1] == []
        tree.build()
        assert [rows(tree, unit)[f"{unit}/2.dcm"]["duplicate"] for unit in copies[1:]] == [None, "conflict"]
        assert_same(tree, tmp_path)


@contextmanager
def killed_in_the_exchange(moment: int) -> Iterator[None]:
    """Raise before the marker is written (-1), or before the n-th rename of a folder."""
    replace, rename = Path.replace, Path.rename
    done: list[Path] = []

    def replacing(path: Path, target: Path) -> Path:
        if moment < 0 and target.name.endswith(".exchange"):
            raise KilledError
        return replace(path, target)

    def renaming(path: Path, target: Path) -> Path:
        if len(done) == moment:
            raise KilledError
        done.append(path)
        return rename(path, target)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Path, "replace", replacing)
        patched.setattr(Path, "rename", renaming)
        with pytest.raises(KilledError):
            yield


class TestKilledRuns:
    @pytest.mark.parametrize("moment", range(-1, FOLDER_RENAMES))
    @pytest.mark.parametrize(("before", "after"), [(6, 20), (20, 6)], ids=["growing", "shrinking"])
    def test_a_killed_exchange_of_an_extraction_is_completed(
        self, tree: Tree, tmp_path: Path, before: int, after: int, moment: int
    ) -> None:
        add(tree, range(before))
        tree.run()
        add(tree, range(before, after))
        remove(tree, range(after, before))
        tree.crawl(accept_missing=True)
        with killed_in_the_exchange(moment):
            tree.extract()
        assert run(tree)[1] == []  # the result of the killed run is used
        tree.build()
        assert_same(tree, tmp_path)

    @pytest.mark.parametrize("moment", range(-1, FOLDER_RENAMES))
    def test_a_killed_exchange_of_a_build_is_completed(self, tree: Tree, tmp_path: Path, moment: int) -> None:
        add(tree, range(6))
        tree.run()
        add(tree, range(6, 20))
        run(tree)
        with killed_in_the_exchange(moment):
            tree.build()
        tree.build()
        assert_same(tree, tmp_path)

    @pytest.mark.parametrize("moment", range(0, 30, 3))
    def test_a_killed_resharding_on_an_object_store_is_completed(
        self, tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
    ) -> None:
        tree.lake = Lake(f"memory://test-killed/{tmp_path.name}", notify=lambda _: None).open()
        add(tree, range(12))
        tree.run()
        remove(tree, range(6, 12))
        tree.crawl(accept_missing=True)  # which has nothing more to write
        calls = itertools.count()

        def dying(method: Any) -> Any:
            def call(lake: Lake, path: str, *args: Any) -> Any:
                if "ds/" in path and "/.ds" not in path and next(calls) == moment:
                    raise KilledError
                return method(lake, path, *args)

            return call

        with monkeypatch.context() as patched:
            for method in ("write_bytes", "remove"):
                patched.setattr(Lake, method, dying(getattr(Lake, method)))
            with pytest.raises(KilledError):
                tree.run()
        tree.run()
        assert remote_content(tree.lake) == in_a_new_lake(tree, tmp_path)


def shards_changed(before: dict[str, bytes], after: dict[str, bytes]) -> set[int]:
    """The shards in which a file of the build has changed."""
    names = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    numbers = {
        path.rpartition("/")[2].partition(".")[0] for path in names if path.startswith(("fhir", "commits/build"))
    }
    return {int(number) for number in numbers}


class TestChangedInputs:
    def test_a_correction_rebuilds_only_its_units(self, tree: Tree, tmp_path: Path) -> None:
        add(tree, range(40))
        tree.run()
        before = content(tree.lake)
        line = {"dataset": "ds", "subject": name(7), "tag": "BodyPartExamined", "value": "HEART", "reason": "a heart"}
        with_corrections(tree, line)
        assert tree.build().units_processed == 1
        assert shards_changed(before, content(tree.lake)) == {assign_shard(name(7), 8)}
        assert_same(tree, tmp_path)
        with_corrections(tree, line, line | {"subject": name(8)})
        assert tree.build().units_processed == 1
        assert_same(tree, tmp_path)

    def test_a_crosswalk_line_rebuilds_only_its_unit(self, tree: Tree, tmp_path: Path) -> None:
        add(tree, range(40))
        tree.run()
        before = content(tree.lake)
        with_crosswalk(tree, ("ds", name(7), "urn:x:persons", "p7"), ("ds", name(9), "urn:x:persons", "p9"))
        assert tree.build().units_processed == 2
        assert shards_changed(before, content(tree.lake)) == {assign_shard(name(7), 8), assign_shard(name(9), 8)}
        assert_same(tree, tmp_path)

    def test_a_study_in_several_shards_is_rebuilt_if_one_unit_changes(self, tree: Tree, tmp_path: Path) -> None:
        add(tree, range(40))
        first, second = name(1), name(2)
        assert assign_shard(first, 8) != assign_shard(second, 8)
        for unit in (first, second):
            tree.write(f"{unit}/9.dcm", study="roaming", PatientID=unit)
        with_crosswalk(tree, ("ds", first, "urn:x:persons", "p7"), ("ds", second, "urn:x:persons", "p7"))
        tree.run()
        touch(tree.write(f"{second}/9.dcm", study="roaming", PatientID=second, SeriesDescription="changed"))
        assert run(tree)[1] == [f"{second}/9.dcm"]
        assert tree.build().units_processed == 2
        assert_same(tree, tmp_path)
