"""measure on the example datasets: what it counts, when it does nothing, and that a kill leaves a redo."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from dicom_etl.lake.schemas import ALL_FINDINGS, COMPLETENESS, DATASET_FINDINGS, FINDINGS, MEASURES
from dicom_etl.lake.tables import Lake
from dicom_etl.settings import Settings
from dicom_etl.sources import SourceError
from dicom_etl.stages import measure as stage
from dicom_etl.stages.measure import measure
from tests.stages.example_lake import example_lake, prepare

TABLES = (COMPLETENESS, MEASURES, ALL_FINDINGS)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Lake, Settings]:
    lake, settings = example_lake(tmp_path_factory.mktemp("examples"))
    for dataset in ("breast", "heart"):
        measure(dataset, lake, settings)
    return lake, settings


@pytest.fixture
def own(measured: tuple[Lake, Settings], tmp_path: Path) -> tuple[Lake, Settings, Path]:
    """A copy of the example with its lake, to be changed; with the folder of its datasets."""
    lake, settings = measured
    tree = Path(settings.datasets["breast"].root).parent
    shutil.copytree(tree, tmp_path / "tree", dirs_exist_ok=True)
    datasets = {
        name: dataset.model_copy(update={"root": str(tmp_path / "tree" / name)})
        for name, dataset in settings.datasets.items()
    }
    copied = Lake(str(tmp_path / "tree" / Path(lake.root).name))
    return copied, settings.model_copy(update={"datasets": datasets}), tmp_path / "tree"


def verdicts(lake: Lake, dataset: str) -> dict[tuple[str, str], tuple[int, int, str]]:
    return {
        (row["check"], row["level"]): (row["n_pass"], row["n_fail"], row["status"])
        for row in lake.read(MEASURES, dataset=dataset).to_pylist()
        if row["group_by"] == "all" and row["tag"] is None and row["reason"] is None
    }


def content(lake: Lake, dataset: str) -> list[bytes | None]:
    return [lake.read_bytes(table.path(dataset=dataset)) for table in TABLES]


@pytest.mark.parametrize("dataset", ["breast", "heart"])
def test_the_arithmetic_holds(measured: tuple[Lake, Settings], dataset: str) -> None:
    rows = measured[0].read(COMPLETENESS, dataset=dataset).to_pylist()
    parts = ("n_unknown", "n_absent", "n_empty", "n_unusable", "n_filled", "n_some")
    assert len(rows) > 1000
    assert [row for row in rows if sum(row[part] or 0 for part in parts) != row["n_applicable"]] == []


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        (
            "breast",
            {
                ("files-readable", "file"): (80, 1, "warn"),  # a text file named .dcm
                ("instances-once", "instance"): (79, 1, "warn"),  # one file is there twice
                ("copies-agree", "instance"): (80, 0, "pass"),
                ("subjects-match", "subject"): (4, 1, "warn"),  # sub-5 was never imaged
                ("samples-match", "sample"): (12, 0, "pass"),
                ("body-part-known", "series"): (6, 1, "warn"),  # MAMMA
                ("fhir-patient-identifier", "patient"): (3, 1, "warn"),  # ANONYMOUS
                ("inventory", "series"): (13, 0, "info"),
            },
        ),
        (
            "heart",
            {
                ("files-readable", "file"): (47, 2, "warn"),  # an empty file, and one cut in its header
                ("samples-match", "sample"): (9, 1, "warn"),  # sam-10 came after the sheets
                ("subjects-match", "subject"): (4, 0, "pass"),
                ("modality-known", "series"): (14, 0, "pass"),
                ("fhir-patient-birth-date", "patient"): (1, 3, "warn"),
            },
        ),
    ],
)
def test_what_the_examples_are_made_to_show(
    measured: tuple[Lake, Settings], dataset: str, expected: dict[Any, Any]
) -> None:
    found = verdicts(measured[0], dataset)
    assert {key: found[key] for key in expected} == expected


def test_reasons_add_up_to_the_failures(measured: tuple[Lake, Settings]) -> None:
    rows = measured[0].read(MEASURES, dataset="breast").to_pylist()
    untagged = [
        row for row in rows if row["tag"] is None and row["check"] not in ("series-by-modality", "files-by-kind")
    ]
    failed: dict[Any, list[int]] = {}
    for row in untagged:
        key = (row["check"], row["level"], row["group_by"], row["group"])
        failed.setdefault(key, [0, 0])[row["reason"] is not None] += row["n_fail"]
    with_reasons = {key: sums for key, sums in failed.items() if key[0] not in ("type-1", "type-2", "identifying-tags")}
    assert {key for key, (verdict, reasons) in with_reasons.items() if verdict != reasons} == set()


def test_findings_of_all_stages_are_there(measured: tuple[Lake, Settings]) -> None:
    rows = measured[0].read(ALL_FINDINGS, dataset="breast").to_pylist()
    codes = {row["code"] for row in rows}
    assert {"junk-skipped", "duplicate-same", "body-part-unmapped", "subject-not-in-tree"} <= codes
    assert {row["stage"] for row in rows} == {"crawl", "extract", "build", "measure"}


def test_a_second_measurement_does_nothing(measured: tuple[Lake, Settings]) -> None:
    lake, settings = measured
    before = [lake.at(table.path(dataset="heart")).stat().st_mtime_ns for table in TABLES]
    again = measure("heart", lake, settings)
    assert (again.made, again.instances) == (False, 47)
    assert [lake.at(table.path(dataset="heart")).stat().st_mtime_ns for table in TABLES] == before


def test_force_makes_the_same_bytes(own: tuple[Lake, Settings, Path]) -> None:
    lake, settings, _ = own
    before = content(lake, "breast")
    assert measure("breast", lake, settings, force=True).made
    assert content(lake, "breast") == before


def test_a_changed_unit_is_measured_again(own: tuple[Lake, Settings, Path]) -> None:
    lake, settings, tree = own
    assert not measure("breast", lake, settings).made
    (tree / "breast" / "primary" / "sub-3" / "sam-2" / "seg.dcm").unlink()
    prepare("breast", lake, settings)
    again = measure("breast", lake, settings)
    assert (again.made, again.instances) == (True, 78)


@pytest.mark.parametrize(
    "change",
    [{"as_of": "2019-01-01"}, {"datasets": {}}],
    ids=["as_of", "time zone"],
)
def test_a_setting_that_matters_measures_again(own: tuple[Lake, Settings, Path], change: dict[str, Any]) -> None:
    lake, settings, _ = own
    assert measure("breast", lake, settings.model_copy(update=change)).made


def test_a_setting_that_does_not_matter_does_not(own: tuple[Lake, Settings, Path]) -> None:
    lake, settings, _ = own
    assert not measure("breast", lake, settings.model_copy(update={"workers": 7})).made


def test_findings_of_a_later_stage_measure_again(own: tuple[Lake, Settings, Path]) -> None:
    lake, settings, _ = own
    found = lake.read(FINDINGS, stage="build", dataset="breast", unit="sub-3")
    lake.write(FINDINGS, found, stage="upload", dataset="breast", unit="sub-3")
    assert measure("breast", lake, settings).made


def test_a_kill_leaves_a_redo(own: tuple[Lake, Settings, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    lake, settings, _ = own
    before = content(lake, "breast")
    with monkeypatch.context() as patch:
        patch.setattr(stage, "measures_table", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            measure("breast", lake, settings, force=True)
    assert not lake.exists(ALL_FINDINGS.path(dataset="breast"))
    assert measure("breast", lake, settings).made
    assert content(lake, "breast") == before


def test_it_needs_no_build(own: tuple[Lake, Settings, Path]) -> None:
    lake, settings, _ = own
    shutil.rmtree(Path(lake.root) / "findings" / "build")
    shutil.rmtree(Path(lake.root) / "fhir")
    built = verdicts(lake, "heart")
    assert measure("heart", lake, settings).made
    without = verdicts(lake, "heart")
    # what the headers could give is what the build made of them
    assert {key: without[key] for key in built if key[0].startswith("fhir-")} == {
        key: built[key] for key in built if key[0].startswith("fhir-")
    }


def test_values_read_in_small_blocks_count_the_same(
    own: tuple[Lake, Settings, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, settings, _ = own
    before = content(lake, "breast")
    monkeypatch.setattr(stage, "_VALUES_AT_ONCE", 1)
    measure("breast", lake, settings, force=True)
    assert content(lake, "breast") == before


def test_a_dataset_that_was_not_extracted_is_refused(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake")).open()
    with pytest.raises(SourceError, match="extract it first"):
        measure("nothing", lake, Settings())


def test_progress_counts_rows(own: tuple[Lake, Settings, Path]) -> None:
    lake, settings, _ = own
    told: list[tuple[str, int, int]] = []
    measure("breast", lake, settings, force=True, progress=lambda *step: told.append(step))
    assert told[-1] == ("measure breast", 80, 80)
    assert len(told) == 4


def test_findings_of_the_dataset_are_read_too(own: tuple[Lake, Settings, Path]) -> None:
    lake, settings, _ = own
    found = lake.read(DATASET_FINDINGS, stage="crawl", dataset="breast")
    lake.write(DATASET_FINDINGS, found.slice(0, 0), stage="crawl", dataset="breast")
    assert measure("breast", lake, settings).made
    assert "crawl" not in lake.read(ALL_FINDINGS, dataset="breast")["stage"].to_pylist()
