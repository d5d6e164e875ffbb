"""Completeness by subject, and the commands that write quality tables."""

import csv
import datetime
import io
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest

from dicom_etl.lake.commits import read_commits
from dicom_etl.lake.schemas import ALL_FINDINGS, COMPLETENESS
from dicom_etl.lake.tables import Lake
from dicom_etl.quality import subject_completeness
from dicom_etl.quality.subject_completeness import count_completeness_by_subject
from dicom_etl.settings import Settings
from dicom_etl.stages.measure import measure
from tests.support.command import RunCommand
from tests.support.lake_tables import CT, Row, write_shards

NAME, KVP, SERIES_TEXT = "00100010", "00180060", "0008103F"
EMPTY, FILLED = 1, 2
# 0008103F (SeriesDescriptionCodeSequence) is Type 3 and not in the catalogue: only sub-1 has it
TAG_PROFILES: dict[int, list[tuple[Any, ...]]] = {
    1: [(SERIES_TEXT, FILLED), (NAME, FILLED), (KVP, FILLED)],
    2: [(NAME, EMPTY)],
}


def row(subject: str | None, number: int, tag_profile: int, **values: Any) -> Row:
    return {
        "unit": subject or ".",
        "subject": subject,
        "path": f"{subject}/{number}",
        "tag_profile": tag_profile,
        "SOPClassUID": CT,
        "Modality": "CT",
        "StudyInstanceUID": f"study of {subject}",
        "SeriesInstanceUID": f"series of {subject}",
        "StudyDate": datetime.date(2020, 1, 2),
        **values,
    }


ROWS = [
    row("sub-1", 1, 1, PatientName="Doe^J", KVP=120.0),
    row("sub-1", 2, 2),
    row("sub-1", 3, 2, duplicate="identical"),
    row("sub-2", 1, 2),
    row(None, 1, 2),
]


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    lake = Lake(str(tmp_path_factory.mktemp("lake"))).open()
    write_shards(lake, "d", ROWS, TAG_PROFILES, shards=4)
    measure("d", lake, Settings())
    return lake


def count(lake: Lake, **choice: Any) -> dict[tuple[Any, ...], tuple[int, ...]]:
    """(level, subject, tag) -> applicable, filled, empty, absent, partial."""
    batches = count_completeness_by_subject(lake, "d", read_commits(lake, "extract", "d"), **choice)
    names = ("n_applicable", "n_filled", "n_empty", "n_absent", "n_partial")
    rows = [row for batch in batches for row in batch.to_pylist()]
    return {(row["level"], row["group"], row["tag"]): tuple(row[name] for name in names) for row in rows}


class TestSubjectCompleteness:
    def test_each_subject_has_its_counts(self, lake: Lake) -> None:
        counts = count(lake)
        assert counts["instance", "sub-1", NAME] == (2, 1, 1, 0, None)
        assert counts["series", "sub-1", NAME] == (1, 0, 0, 0, 1)
        assert counts["instance", "sub-2", NAME] == (1, 0, 1, 0, None)
        assert counts["instance", None, KVP] == (1, 0, 0, 1, None)  # the files without a subject

    def test_every_subject_has_the_tags_of_the_dataset(self, lake: Lake) -> None:
        counts = count(lake, levels=["series"])
        tags = {subject: {tag for _, name, tag in counts if name == subject} for subject in ("sub-1", "sub-2", None)}
        assert tags["sub-1"] == tags["sub-2"] == tags[None]
        assert counts["series", "sub-2", SERIES_TEXT] == (1, 0, 0, 1, 0)

    def test_subjects_and_levels_are_chosen(self, lake: Lake) -> None:
        counts = count(lake, subjects=["sub-2"], levels=["study"])
        assert {(level, subject) for level, subject, _ in counts} == {("study", "sub-2")}

    def test_few_subjects_at_a_time_count_the_same(self, lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
        before = count(lake)
        monkeypatch.setattr(subject_completeness, "COUNTED_SUBJECTS", 1)
        assert count(lake) == before

    def test_the_query_of_the_documentation_counts_the_same(self, lake: Lake) -> None:
        text = (Path(__file__).parents[2] / "docs/how-to/audit-tags.md").read_text(encoding="utf-8")
        query = (
            text.partition("```sql\n")[2]
            .partition("```")[0]
            .replace("lake/", f"{lake.root}/")
            .replace("/breast/", "/d/")
        )
        rows = duckdb.sql(query).to_arrow_table().to_pylist()
        counts = count(lake, levels=["instance"])
        queried = {
            ("instance", row["subject"], row["tag"]): (
                row["instances"],
                row["filled"],
                row["empty"],
                row["absent"],
                None,
            )
            for row in rows
        }
        assert len(queried) == 3 + 1 + 1  # the tags of each subject
        assert queried == {key: counts[key] for key in queried}


def lines(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


class TestCommands:
    def test_completeness_is_written_to_standard_output(self, lake: Lake, run_command: RunCommand) -> None:
        code, out, _ = run_command("completeness", "d", "--lake", lake.root)
        assert code == 0
        assert len(lines(out)) == lake.count_rows(COMPLETENESS, dataset="d")

    def test_groups_and_levels_are_chosen(self, lake: Lake, run_command: RunCommand) -> None:
        _, out, _ = run_command("completeness", "d", "--by", "modality", "--level", "series", "--lake", lake.root)
        assert {(line["group_by"], line["group"], line["level"]) for line in lines(out)} == {
            ("modality", "CT", "series")
        }

    def test_a_subject_is_chosen(self, lake: Lake, run_command: RunCommand) -> None:
        arguments = ("--by", "subject", "--subject", "sub-2", "--level", "instance")
        _, out, _ = run_command("completeness", "d", *arguments, "--lake", lake.root)
        assert {line["group"] for line in lines(out)} == {"sub-2"}

    @pytest.mark.parametrize("name", ["tags.csv", "tags.parquet"])
    def test_a_complete_file_is_written(self, lake: Lake, run_command: RunCommand, tmp_path: Path, name: str) -> None:
        file = tmp_path / name
        code, out, _ = run_command("completeness", "d", "--by", "subject", "--output", file, "--lake", lake.root)
        assert code == 0
        rows = lines(file.read_text()) if name == "tags.csv" else pq.read_table(file).to_pylist()
        assert {row["group"] or None for row in rows} == {"sub-1", "sub-2", None}
        assert f"{len(rows):,} rows" in out
        assert list(tmp_path.iterdir()) == [file]

    def test_findings_are_written(self, lake: Lake, run_command: RunCommand) -> None:
        _, out, _ = run_command("findings", "d", "--lake", lake.root)
        assert len(lines(out)) == lake.count_rows(ALL_FINDINGS, dataset="d") > 0
        _, out, _ = run_command(
            "findings", "d", "--code", "type-2-missing", "--severity", "warning", "--lake", lake.root
        )
        assert {line["code"] for line in lines(out)} == {"type-2-missing"}
        _, out, _ = run_command("findings", "d", "--severity", "error", "--lake", lake.root)
        assert lines(out) == []

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (("completeness", "other"), "the lake has no dataset other; it has d"),
            (("completeness", "d", "--by", "subjects"), "--by subjects: the choices are all, modality"),
            (("completeness", "d", "--level", "file"), "--level file: the choices are series, study, instance"),
            (("completeness", "d", "--subject", "sub-1"), "give --by subject as well"),
            (("completeness", "d", "--by", "subject", "--subject", "sub-9"), "d has no subject sub-9"),
            (("completeness", "d", "--output", "tags.xlsx"), "the name must end in .csv or .parquet"),
            (("findings", "d", "--severity", "bad"), "--severity bad: the choices are error, warning, info"),
            (("findings", "d", "--output", "/nowhere/x.csv"), "/nowhere/x.csv cannot be written"),
        ],
    )
    def test_errors_are_one_sentence(
        self, lake: Lake, run_command: RunCommand, arguments: tuple[str, ...], sentence: str
    ) -> None:
        code, out, error = run_command(*arguments, "--lake", lake.root)
        assert (code, out) == (2, "")
        assert sentence in error

    def test_a_dataset_that_was_not_measured_is_refused(self, tmp_path: Path, run_command: RunCommand) -> None:
        lake = Lake(str(tmp_path / "lake")).open()
        write_shards(lake, "d", ROWS, TAG_PROFILES)
        code, _, error = run_command("completeness", "d", "--by", "subject", "--lake", lake.root)
        assert code == 2
        assert "run `dicom-etl measure d` first" in error
