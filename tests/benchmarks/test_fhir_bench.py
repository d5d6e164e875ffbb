"""The benchmark of FHIR resources: its lake gives all studies with all instances."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.fhir_resources import check_built
from benchmarks.studies import DATASET, INSTANCES, PER_UNIT, read_rows, write_lake, write_studies
from dicom_etl.engine import Engine
from dicom_etl.lake.schemas import FINDINGS, INVENTORY, header_table
from dicom_etl.lake.shard_reader import read_shards, read_unit
from dicom_etl.lake.tables import Lake
from dicom_etl.settings import DatasetSettings, Settings
from dicom_etl.sources import TreeSource
from dicom_etl.stages.build import build

STUDIES = PER_UNIT + 2  # two units


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    write_studies(folder, 2)
    return folder


@pytest.fixture(scope="module")
def lake(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Lake:
    scratch = tmp_path_factory.mktemp("lakes")
    return write_lake(scratch / "lake", read_rows(files, scratch / "read"), STUDIES)


def test_the_lake_has_a_row_for_each_instance(lake: Lake) -> None:
    assert lake.count_rows(INVENTORY, dataset=DATASET) == STUDIES * INSTANCES
    units = ("sub-0000", "sub-0001")
    assert [read_unit(lake, header_table(), dataset=DATASET, unit=unit).num_rows for unit in units] == [
        PER_UNIT * INSTANCES,
        2 * INSTANCES,
    ]
    for column in ("SOPInstanceUID", "path"):
        values = [v for rows in read_shards(lake, header_table(), [column], dataset=DATASET) for v in rows[column]]
        assert len({value.as_py() for value in values}) == STUDIES * INSTANCES


def test_all_resources_and_some_findings_are_built(lake: Lake, files: Path) -> None:
    dataset = DatasetSettings(root=str(files), time_zone="Europe/Berlin")
    built = build(TreeSource(DATASET, files), lake, Settings(engine="serial"), dataset, Engine(), force=True)
    assert (built.units_processed, built.studies, built.held) == (2, STUDIES, 0)
    check_built(lake, STUDIES)
    codes = read_unit(lake, FINDINGS, ["code"], stage="build", dataset=DATASET, unit="sub-0000")["code"].to_pylist()
    assert {"values-conflict", "date-substituted", "body-part-unmapped"} <= set(codes)


def test_an_incomplete_build_is_an_error(lake: Lake) -> None:
    with pytest.raises(SystemExit, match=rf"and not {STUDIES + 1} with"):
        check_built(lake, STUDIES + 1)
