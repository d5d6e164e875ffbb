"""The files that a run opens if nothing changed, or one subject."""

from __future__ import annotations

from pathlib import Path
from typing import IO

import pytest

from benchmarks.shapes_corpus import write_shape
from dicom_etl.lake.tables import Lake
from dicom_etl.pipeline import STAGES, Pipeline, RunOptions, run
from dicom_etl.settings import DatasetSettings, Settings
from dicom_etl.sources import TreeSource

AUDIT = [stage for stage in STAGES if stage != "upload"]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files of the lake and of the dataset that are opened, in order."""
    paths: list[str] = []
    open_lake, open_source = Lake.open_file, TreeSource.open

    def open_in_lake(lake: Lake, path: str) -> IO[bytes]:
        paths.append(path)
        return open_lake(lake, path)

    def open_in_source(source: TreeSource, path: str) -> IO[bytes]:
        paths.append(f"source {path}")
        return open_source(source, path)

    monkeypatch.setattr(Lake, "open_file", open_in_lake)
    monkeypatch.setattr(TreeSource, "open", open_in_source)
    return paths


@pytest.mark.parametrize(("subjects", "files"), [(2, 60), (120, 1)])
def test_an_unchanged_run_opens_no_dicom_file_and_no_header_table(
    tmp_path: Path, opened: list[str], subjects: int, files: int
) -> None:
    write_shape(tmp_path / "ds", subjects, files)
    settings = Settings(lake=str(tmp_path / "lake"), engine="serial")
    pipeline = Pipeline(settings, {"ds": DatasetSettings(root=str(tmp_path / "ds"))})
    assert run(pipeline, ["ds"], AUDIT).exit_code == 0
    assert len([path for path in opened if path.startswith("source ")]) == 120

    opened.clear()
    assert run(pipeline, ["ds"], AUDIT).exit_code == 0
    folders = {"/".join(path.split("/")[:2]) for path in opened}
    assert {path for path in opened if path.startswith("source ")} == set()
    assert folders.isdisjoint({"headers/ds", "files/ds", "tag_profiles/ds", "fhir_elements/ds", "fhir/ImagingStudy"})
    assert "commits/extract" in folders
    # the number does not grow with subjects or files: these are the tables that the stages compare
    assert len(opened) < 40


def test_a_changed_subject_opens_its_files_and_its_shard(tmp_path: Path, opened: list[str]) -> None:
    shape = write_shape(tmp_path / "ds", 120, 1)
    settings = Settings(lake=str(tmp_path / "lake"), engine="serial")
    pipeline = Pipeline(settings, {"ds": DatasetSettings(root=str(tmp_path / "ds"))})
    run(pipeline, ["ds"], AUDIT)
    changed = Path(shape.paths[7])
    changed.touch()

    opened.clear()
    outcome = run(pipeline, ["ds"], AUDIT, RunOptions())
    sources = [path for path in opened if path.startswith("source ")]
    assert sources == [f"source {changed.relative_to(tmp_path / 'ds').as_posix()}"]
    assert (outcome.summaries["ds"]["extract"].units_processed, outcome.summaries["ds"]["build"].units_processed) == (
        1,
        1,
    )
