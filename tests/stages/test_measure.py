"""measure: its counts, over lakes written by hand and over the examples, and when it does nothing."""

import cProfile
import datetime
import pstats
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dicom_etl.findings import make_finding, tabulate_findings
from dicom_etl.lake.commits import DamagedShardError
from dicom_etl.lake.schemas import ALL_FINDINGS, COMPLETENESS, DATASET_FINDINGS, MEASURES, SHEETS
from dicom_etl.lake.tables import Lake
from dicom_etl.quality import inputs
from dicom_etl.quality.check_table import quality_checks
from dicom_etl.settings import Settings
from dicom_etl.sources import SourceError
from dicom_etl.stages import measure as stage
from dicom_etl.stages.measure import measure
from tests.stages.example_lake import example_lake
from tests.support.lake_tables import CT, MR, Row, table_of, write_shards

TABLES = (COMPLETENESS, MEASURES, ALL_FINDINGS)
NAME, KVP, DATE, MODALITY = "00100010", "00180060", "00080020", "00080060"
EMPTY, FILLED = 1, 2
TAG_PROFILES: dict[int, list[tuple[Any, ...]]] = {
    1: [(DATE, FILLED), (MODALITY, FILLED), (NAME, FILLED), (KVP, FILLED)],
    2: [(DATE, FILLED), (MODALITY, FILLED), (NAME, FILLED)],
}


def instance(number: int, unit: str, series: str = "1", **values: Any) -> Row:
    """A CT of the one study of a subject."""
    return {
        "unit": unit,
        "subject": unit,
        "path": f"primary/{unit}/{series}-{number}.dcm",
        "tag_profile": 1,
        "SOPClassUID": CT,
        "Modality": "CT",
        "StudyDate": datetime.date(2020, 1, 2),
        "PatientName": "Doe^J",
        "KVP": 120.0,
        "StudyInstanceUID": f"study of {unit}",
        "SeriesInstanceUID": f"{unit}.{series}",
        **values,
    }


# sub-1: two CT and a copy of one; sub-2: a CT without KVP; sub-3: an MR of an unknown modality
ROWS = [
    instance(1, "sub-1"),
    instance(2, "sub-1"),
    instance(3, "sub-1", duplicate="identical"),
    instance(1, "sub-2", tag_profile=2, KVP=None),
    instance(1, "sub-3", tag_profile=2, KVP=None, SOPClassUID=MR, Modality="XYZ"),
]
UNREADABLE = {"unit": "sub-2", "subject": "sub-2", "path": "primary/sub-2/x.dcm", "kind": "unreadable", "reason": "cut"}
SUBJECTS = ("sub-1", "sub-2", "sub-4")  # of the sheet


def write(lake: Lake, rows: Iterable[Row] = ROWS, **more: Any) -> Lake:
    rows = list(rows)
    write_shards(
        lake,
        "d",
        rows,
        TAG_PROFILES,
        files=[
            *({"kind": "dicom"} | {key: row[key] for key in ("unit", "subject", "path")} for row in rows),
            UNREADABLE,
        ],
        **{
            "elements": [
                {"unit": s, "level": "study", "study_uid": f"study of {s}", "started": True, "started_time": False}
                for s in ("sub-1", "sub-2")
            ],
            "findings": {stage: tabulate_findings(of_stage(code)).to_pylist() for stage, code in CODES.items()},
            "sheets": [{"sheet": "subjects", "subject": s, "field": "subject id", "value": s} for s in SUBJECTS],
            **more,
        },
    )
    return lake


CODES = {"extract": "pixel-data-absent", "build": "time-zone-missing"}


def of_stage(code: str) -> list[Any]:
    return [make_finding(code, "d", unit="sub-1", subject="sub-1", path="primary/sub-1/1-1.dcm")]


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return write(Lake(str(tmp_path / "lake")).open())


def results(lake: Lake, dataset: str) -> dict[tuple[str, str], tuple[int, int, str]]:
    return {
        (row["check"], row["level"]): (row["n_pass"], row["n_fail"], row["result"])
        for row in lake.read(MEASURES, dataset=dataset).to_pylist()
        if row["group_by"] == "all" and row["tag"] is None and row["reason"] is None
    }


def content(lake: Lake, dataset: str = "d") -> list[bytes | None]:
    return [lake.read_bytes(table.path(dataset=dataset)) for table in TABLES]


class TestCounts:
    def test_check_results_of_a_dataset_counted_by_hand(self, lake: Lake) -> None:
        done = measure("d", lake, Settings())
        assert (done.units, done.instances) == (3, 4)
        counted = results(lake, "d")
        expected = {
            ("files-readable", "file"): (5, 1, "fail"),
            ("instances-once", "instance"): (4, 1, "warn"),
            ("copies-agree", "instance"): (5, 0, "pass"),
            ("inventory", "subject"): (3, 0, "not-evaluated"),
            ("inventory", "study"): (3, 0, "not-evaluated"),
            ("inventory", "series"): (3, 0, "not-evaluated"),
            ("modality-known", "series"): (2, 1, "fail"),
            ("subjects-match", "subject"): (2, 2, "warn"),  # sub-3 has no row, sub-4 no folder
            ("fhir-built", "study"): (2, 1, "not-evaluated"),
            ("fhir-started", "study"): (2, 1, "warn"),
            ("subjects-listed", "subject"): (4, 0, "not-evaluated"),
        }
        assert {key: counted[key] for key in expected} == expected

    def test_completeness_of_a_dataset_counted_by_hand(self, lake: Lake) -> None:
        measure("d", lake, Settings())
        rows = {
            (row["level"], row["group_by"], row["group"]): (row["n_filled"], row["n_absent"], row["n_partial"])
            for row in lake.read(COMPLETENESS, dataset="d").to_pylist()
            if row["tag"] == KVP
        }
        assert rows["instance", "all", "all"] == (2, 1, None)  # an MR has no KVP, and a copy counts once
        assert rows["series", "modality", "CT"] == (1, 1, 0)
        assert rows["study", "study_year", "2020"] == (1, 1, 0)
        assert {group_by for _, group_by, _ in rows} == {
            "all",
            "modality",
            "sop_class",
            "manufacturer",
            "model",
            "study_year",
        }

    def test_findings_of_all_stages_are_in_one_table(self, lake: Lake) -> None:
        crawled = tabulate_findings([make_finding("system-files-skipped", "d", path=".DS_Store")])
        lake.write(DATASET_FINDINGS, crawled, stage="crawl", dataset="d")
        measure("d", lake, Settings())
        rows = lake.read(ALL_FINDINGS, dataset="d").to_pylist()
        assert {row["stage"] for row in rows} == {"crawl", "extract", "build", "measure"}
        codes = {row["code"] for row in rows}
        assert {
            "system-files-skipped",
            *CODES.values(),
            "modality-unknown",
            "subject-not-in-tree",
            "type-2-missing",
        } <= codes
        order = [[row[name] or "\U0010ffff" for name in ALL_FINDINGS.order] for row in rows]
        assert order == sorted(order)

    def test_subjects_have_their_gaps_files_and_mismatches(self, lake: Lake) -> None:
        measure("d", lake, Settings())
        rows = [row for row in lake.read(MEASURES, dataset="d").to_pylist() if row["group_by"] == "subject"]

        def counts(check: str, level: str) -> dict[str, int]:
            return {
                r["group"]: r["n_applicable"]
                for r in rows
                if (r["check"], r["level"], r["reason"]) == (check, level, None)
            }

        assert counts("inventory", "instance") == {"sub-1": 2, "sub-2": 1, "sub-3": 1}
        assert counts("files-readable", "file") == {"sub-1": 3, "sub-2": 2, "sub-3": 1}
        assert counts("tags-with-gaps", "tag")["sub-2"] == counts("tags-with-gaps", "tag")["sub-1"] + 1  # KVP
        notes = {row["group"]: row["reason"] for row in rows if row["check"] == "subjects-match" and row["reason"]}
        assert notes == {"sub-3": "folder without a row in the sheet", "sub-4": "row without a folder"}
        series = {(row["group"], row["reason"]): row["n_pass"] for row in rows if row["check"] == "series-by-modality"}
        assert series == {("sub-1", "CT"): 1, ("sub-2", "CT"): 1, ("sub-3", "XYZ"): 1}

    def test_of_many_subjects_those_with_the_most_failures_are_listed(self, tmp_path: Path) -> None:
        rows = [instance(1, f"sub-{number:03d}") for number in range(249)]
        lake = write(Lake(str(tmp_path / "lake")).open(), [*rows, *ROWS], sheets=())
        measure("d", lake, Settings())
        assert results(lake, "d")["subjects-listed", "subject"] == (200, 52, "not-evaluated")
        measures = lake.read(MEASURES, dataset="d").to_pylist()
        listed = {row["group"] for row in measures if row["group_by"] == "subject"}
        assert len(listed) == 200
        assert {"sub-2", "sub-000"} <= listed
        assert "sub-248" not in listed

    @pytest.mark.parametrize("built", [(), ("sub-1",)])
    def test_readiness_does_not_count_units_that_are_not_built(self, tmp_path: Path, built: tuple[str, ...]) -> None:
        lake = write(Lake(str(tmp_path / "lake")).open(), built=built)
        measure("d", lake, Settings())
        counted = results(lake, "d")
        assert counted["fhir-started", "study"][:2] == (len(built), 0)
        reasons = [
            r for r in lake.read(MEASURES, dataset="d").to_pylist() if r["check"] == "fhir-built" and r["reason"]
        ]
        assert {row["reason"]: row["n_fail"] for row in reasons}["not built yet"] == 3 - len(built)

    def test_a_dataset_that_was_never_built_is_measured(self, lake: Lake) -> None:
        lake.remove_folder("commits/build/d")
        measure("d", lake, Settings())
        counted = results(lake, "d")
        assert counted["fhir-built", "study"] == (0, 3, "not-evaluated")
        assert counted["fhir-started", "study"] == (0, 0, "not-evaluated")


def rows_of_tables(lake: Lake) -> list[list[Row]]:
    return [lake.read(table, dataset="d").to_pylist() for table in TABLES]


class TestSameBytes:
    def test_the_number_of_shards_does_not_matter(self, lake: Lake, tmp_path: Path) -> None:
        measure("d", lake, Settings())
        in_shards = write(Lake(str(tmp_path / "shards")).open(), shards=4)
        measure("d", in_shards, Settings())
        assert rows_of_tables(in_shards) == rows_of_tables(lake)

    def test_header_rows_read_in_small_batches_count_the_same(
        self, lake: Lake, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        measure("d", lake, Settings())
        before = content(lake)
        with monkeypatch.context() as patch:
            patch.setattr(inputs, "READ_ROWS", 1)
            measure("d", lake, Settings(), force=True)
        assert content(lake) == before

    def test_force_writes_the_same_bytes(self, lake: Lake) -> None:
        measure("d", lake, Settings())
        before = content(lake)
        assert measure("d", lake, Settings(), force=True).updated
        assert content(lake) == before

    def test_a_lake_on_an_object_store(self, lake: Lake) -> None:
        measure("d", lake, Settings())
        stored = write(Lake("memory://measured").open())
        try:
            assert measure("d", stored, Settings()).updated
            assert not measure("d", stored, Settings()).updated
            assert rows_of_tables(stored) == rows_of_tables(lake)
        finally:
            stored.remove_folder("")


class TestWhenToMeasure:
    def test_an_unchanged_dataset_is_not_read_again(self, lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
        first = measure("d", lake, Settings())
        before = [lake.resolve(table.path(dataset="d")).stat().st_mtime_ns for table in TABLES]
        read = Lake.read

        def read_quality(self: Lake, table: Any, *arguments: Any, **names: Any) -> Any:
            assert table.path(**names).startswith("quality/")
            return read(self, table, *arguments, **names)

        monkeypatch.setattr(Lake, "read", read_quality)
        monkeypatch.delattr(Lake, "read_batches")
        again = measure("d", lake, Settings())
        assert again == replace(first, updated=False)
        assert [lake.resolve(table.path(dataset="d")).stat().st_mtime_ns for table in TABLES] == before

    def test_a_changed_shard_is_measured_again(self, lake: Lake) -> None:
        measure("d", lake, Settings())
        write(lake, ROWS[:-1])
        again = measure("d", lake, Settings())
        assert (again.updated, again.instances) == (True, 3)

    def test_changed_resources_are_measured_again(self, lake: Lake) -> None:
        measure("d", lake, Settings())
        write(lake, elements=())
        assert measure("d", lake, Settings()).updated

    @pytest.mark.parametrize(
        "change",
        [{"reference_date": "2019-01-01"}, {"time_zone": "Europe/Berlin"}],
        ids=["reference_date", "time zone"],
    )
    def test_a_setting_that_matters_causes_a_measurement(self, lake: Lake, change: dict[str, Any]) -> None:
        measure("d", lake, Settings())
        assert measure("d", lake, Settings().model_copy(update=change)).updated

    def test_a_setting_that_does_not_matter_causes_none(self, lake: Lake) -> None:
        measure("d", lake, Settings())
        assert not measure("d", lake, Settings().model_copy(update={"workers": 7})).updated

    def test_findings_of_a_later_stage_cause_a_measurement(self, lake: Lake) -> None:
        measure("d", lake, Settings())
        lake.write(DATASET_FINDINGS, tabulate_findings(of_stage("upload-rejected")), stage="upload", dataset="d")
        assert measure("d", lake, Settings()).updated
        assert "upload" in lake.read(ALL_FINDINGS, dataset="d")["stage"].to_pylist()

    def test_changed_sheets_cause_a_measurement(self, lake: Lake) -> None:
        measure("d", lake, Settings())
        lake.write(SHEETS, table_of(SHEETS, []), dataset="d")
        assert measure("d", lake, Settings()).updated

    def test_a_killed_measurement_is_repeated(self, lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
        measure("d", lake, Settings())
        before = content(lake)
        with monkeypatch.context() as patch:
            patch.setattr(stage, "tabulate_measures", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                measure("d", lake, Settings(), force=True)
        assert not lake.exists(ALL_FINDINGS.path(dataset="d"))
        assert measure("d", lake, Settings()).updated
        assert content(lake) == before

    def test_a_dataset_that_was_not_extracted_is_refused(self, tmp_path: Path) -> None:
        lake = Lake(str(tmp_path / "lake")).open()
        with pytest.raises(SourceError, match="extract it first"):
            measure("nothing", lake, Settings())

    def test_a_shard_without_one_of_its_files_is_refused(self, lake: Lake) -> None:
        lake.remove("headers/d/0000.parquet")
        with pytest.raises(DamagedShardError, match=r"headers/d/0000\.parquet does not match its commit"):
            measure("d", lake, Settings())

    def test_progress_counts_rows(self, lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(inputs, "READ_ROWS", 1)
        write(lake, shards=4)
        steps: list[tuple[str, int, int]] = []
        measure("d", lake, Settings(), progress=lambda *step: steps.append(step))
        assert steps[-1] == ("measure d", 5, 5)
        assert len(steps) > 1

    def test_no_python_call_is_made_for_each_unit(self, tmp_path: Path) -> None:
        calls = []
        for number in (400, 1200):
            lake = Lake(str(tmp_path / f"lake-{number}")).open()
            rows = [instance(1, f"sub-{n:04d}", PatientName=f"Doe^{n}") for n in range(number)]
            write(
                lake,
                [*rows, *ROWS],
                sheets=(),
                findings={
                    "build": [
                        {
                            **row,
                            "code": "time-zone-missing",
                            "severity": "info",
                            "stage": "build",
                            "dataset": "d",
                            "count": 1,
                        }
                        for row in rows
                    ]
                },
            )
            measure("d", lake, Settings())  # tables of the standard are loaded once
            with cProfile.Profile() as profile:
                measure("d", lake, Settings(), force=True)
            calls.append(pstats.Stats(profile).total_calls)  # type: ignore[attr-defined]
        assert calls[1] < calls[0] + 400


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    lake, settings = example_lake(tmp_path_factory.mktemp("examples"))
    for dataset in ("breast", "heart"):
        measure(dataset, lake, settings)
    return lake


class TestExamples:
    @pytest.mark.parametrize("dataset", ["breast", "heart"])
    def test_the_states_add_up_to_the_applicable(self, measured: Lake, dataset: str) -> None:
        rows = measured.read(COMPLETENESS, dataset=dataset).to_pylist()
        states = ("n_unknown", "n_absent", "n_empty", "n_unusable", "n_filled", "n_partial")
        assert len(rows) > 1000
        assert [row for row in rows if sum(row[state] or 0 for state in states) != row["n_applicable"]] == []

    @pytest.mark.parametrize(
        ("dataset", "expected"),
        [
            (
                "breast",
                {
                    ("files-readable", "file"): (80, 1, "warn"),  # a text file named .dcm
                    ("instances-once", "instance"): (79, 1, "warn"),  # one file exists twice
                    ("copies-agree", "instance"): (80, 0, "pass"),
                    ("subjects-match", "subject"): (4, 1, "warn"),  # sub-5 was never imaged
                    ("samples-match", "sample"): (12, 0, "pass"),
                    ("body-part-known", "series"): (6, 1, "warn"),  # MAMMA
                    ("fhir-patient-identifier", "patient"): (3, 1, "warn"),  # ANONYMOUS
                    ("inventory", "series"): (13, 0, "not-evaluated"),
                },
            ),
            (
                "heart",
                {
                    ("files-readable", "file"): (47, 2, "warn"),  # an empty file, and one truncated in its header
                    ("samples-match", "sample"): (9, 1, "warn"),  # sam-10 came after the sheets
                    ("subjects-match", "subject"): (4, 0, "pass"),
                    ("modality-known", "series"): (14, 0, "pass"),
                    ("fhir-patient-birth-date", "patient"): (1, 3, "warn"),
                },
            ),
        ],
    )
    def test_the_problems_of_the_examples_are_counted(
        self, measured: Lake, dataset: str, expected: dict[Any, Any]
    ) -> None:
        counted = results(measured, dataset)
        assert {key: counted[key] for key in expected} == expected

    def test_reasons_add_up_to_the_failures(self, measured: Lake) -> None:
        rows = measured.read(MEASURES, dataset="breast").to_pylist()
        untagged = [
            row for row in rows if row["tag"] is None and row["check"] not in ("series-by-modality", "files-by-kind")
        ]
        failed: dict[Any, list[int]] = {}
        for row in untagged:
            key = (row["check"], row["level"], row["group_by"], row["group"])
            failed.setdefault(key, [0, 0])[row["reason"] is not None] += row["n_fail"]
        with_reasons = {
            key: sums for key, sums in failed.items() if key[0] not in ("type-1", "type-2", "identifying-tags")
        }
        assert {key for key, (failures, reasons) in with_reasons.items() if failures != reasons} == set()

    def test_findings_of_the_examples(self, measured: Lake) -> None:
        rows = measured.read(ALL_FINDINGS, dataset="breast").to_pylist()
        codes = {row["code"] for row in rows}
        assert {"system-files-skipped", "duplicate-identical", "body-part-unmapped", "subject-not-in-tree"} <= codes
        assert {row["stage"] for row in rows} == {"crawl", "extract", "build", "measure"}

    def test_each_check_has_a_result_in_the_examples(self, measured: Lake) -> None:
        rows = measured.read(MEASURES, dataset="breast").to_pylist()
        assert {row["check"] for row in rows} == set(quality_checks())
