"""The lake as pandas data frames: rows, types, and errors that name what exists."""

from __future__ import annotations

import datetime
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import dicom_etl
from dicom_etl.lake.schemas import UPLOAD_LEDGER
from dicom_etl.notebook import LakeQueryError, LakeView
from dicom_etl.stages.measure import measure
from tests.support.datasets import Tree, make_tree, uid

NOON = datetime.datetime(2024, 5, 1, 12, tzinfo=datetime.UTC)


@pytest.fixture
def trees(tmp_path: Path) -> tuple[Tree, Tree]:
    """Dataset `a` with two subjects, an MR and a CT study; dataset `b` with one, which no stage but the crawl saw."""
    a = make_tree(tmp_path, "a")
    common = {"study": "mr", "SliceThickness": "1.5", "Rows": 256}
    a.write("primary/sub-1/sam-1/1.dcm", series="mr-1", instance="first", **common)
    a.write("primary/sub-1/sam-1/2.dcm", series="mr-2", **common)
    a.write("primary/sub-1/sam-1/copy.dcm", series="mr-1", instance="first", **common)
    a.write("primary/sub-2/sam-1/1.dcm", study="ct", series="ct", Modality="CT", StudyDate="20231231", PatientID="P-2")
    a.run()
    b = make_tree(tmp_path, "b", lake=a.lake)
    b.write("primary/sub-9/sam-1/1.dcm", study="b", series="b")
    b.crawl()
    return a, b


@pytest.fixture
def lake(trees: tuple[Tree, Tree]) -> LakeView:
    return dicom_etl.open_lake(trees[0].lake.root)


def values(frame: pd.DataFrame, *columns: str) -> list[tuple[object, ...]]:
    """The rows of a data frame, with None for missing values."""
    rows = frame[list(columns)].astype(object)
    return [tuple(row) for row in rows.where(rows.notna(), None).itertuples(index=False)]


class TestHeaders:
    def test_rows_have_the_columns_in_the_order_asked_for(self, lake: LakeView) -> None:
        frame = lake.headers("a", columns=["subject", "Modality", "StudyDate", "SliceThickness", "Rows"])
        assert list(frame.columns) == ["subject", "Modality", "StudyDate", "SliceThickness", "Rows"]
        day, eve = datetime.date(2024, 1, 5), datetime.date(2023, 12, 31)
        assert values(frame, *frame.columns) == [
            ("sub-1", "MR", day, 1.5, 256),
            ("sub-1", "MR", day, 1.5, 256),
            ("sub-1", "MR", day, 1.5, 256),
            ("sub-2", "CT", eve, None, None),
        ]

    def test_without_columns_there_are_all_of_them(self, lake: LakeView) -> None:
        frame = lake.headers("a")
        assert frame.shape[0] == 4
        assert {"path", "tag_profile", "SOPInstanceUID", "ImageOrientationPatient"} <= set(frame.columns)

    def test_types_keep_what_the_lake_has(self, lake: LakeView) -> None:
        columns = ["path", "dataset", "Modality", "StudyDate", "Rows", "SliceThickness"]
        assert [str(kind) for kind in lake.headers("a", columns=columns).dtypes] == [
            "string",
            "category",
            "category",
            "date32[day][pyarrow]",
            "Int64",
            "float64",
        ]

    def test_dates_have_the_accessor_of_dates(self, lake: LakeView) -> None:
        assert lake.headers("a", columns=["StudyDate"]).StudyDate.dt.year.tolist() == [2024, 2024, 2024, 2023]

    def test_a_subject_limits_the_rows(self, lake: LakeView) -> None:
        frame = lake.headers("a", columns=["Modality"], subject="sub-2")
        assert values(frame, "Modality") == [("CT",)]

    def test_a_subject_reads_only_its_row_groups(self, lake: LakeView, monkeypatch: pytest.MonkeyPatch) -> None:
        from dicom_etl.lake.tables import Lake

        def refuse(*_: object, **__: object) -> None:
            raise AssertionError("a whole table was read")

        monkeypatch.setattr(Lake, "read", refuse)
        assert len(lake.headers("a", columns=["Modality"], subject="sub-1")) == 3

    def test_a_dataset_that_was_only_crawled_has_no_rows(self, lake: LakeView) -> None:
        frame = lake.headers("b", columns=["path", "Rows"])
        assert (len(frame), str(frame.Rows.dtype)) == (0, "Int64")

    def test_an_unknown_subject_is_refused_with_similar_ones(self, lake: LakeView) -> None:
        with pytest.raises(LakeQueryError, match=r"^a has no subject 'sub-3': did you mean sub-[12] or sub-[12]\?$"):
            lake.headers("a", subject="sub-3")

    @pytest.mark.parametrize(
        ("column", "advice"),
        [
            ("StudyDat", "did you mean StudyDate"),
            ("modality", "did you mean Modality"),
            ("Qqqqqqqq", "there are "),
        ],
    )
    def test_an_unknown_column_is_refused_with_similar_ones(self, lake: LakeView, column: str, advice: str) -> None:
        with pytest.raises(LakeQueryError, match=f"^the table headers has no column '{column}'.*{advice}"):
            lake.headers("a", columns=["path", column])

    def test_an_unknown_dataset_is_refused_with_those_that_exist(self, lake: LakeView) -> None:
        with pytest.raises(LakeQueryError, match=r"^the lake has no dataset 'c'; it has a, b$"):
            lake.headers("c")


class TestStudies:
    def test_a_study_has_one_row_with_its_counts_and_its_patient(
        self, lake: LakeView, trees: tuple[Tree, Tree]
    ) -> None:
        frame = lake.studies("a")
        columns = ("subject", "study_uid", "date", "modalities", "series", "instances", "rule", "state")
        assert values(frame, *columns) == [
            ("sub-1", uid("mr"), datetime.date(2024, 1, 5), "MR", 2, 2, "patient-id", "ok"),
            ("sub-2", uid("ct"), datetime.date(2023, 12, 31), "CT", 1, 1, "patient-id", "ok"),
        ]
        [patient] = trees[0].resources("Patient", "sub-2")
        assert frame.patient[1] == patient["id"]

    def test_all_datasets_are_read_where_none_is_named(self, lake: LakeView, trees: tuple[Tree, Tree]) -> None:
        trees[1].extract()
        assert values(lake.studies(), "dataset", "instances", "state") == [
            ("a", 2, "ok"),
            ("a", 1, "ok"),
            ("b", 1, None),
        ]

    def test_types_are_those_of_the_other_tables(self, lake: LakeView) -> None:
        frame = lake.studies()
        kinds = {name: str(frame[name].dtype) for name in ("dataset", "date", "series", "state", "patient")}
        assert kinds == {
            "dataset": "category",
            "date": "date32[day][pyarrow]",
            "series": "Int64",
            "state": "category",
            "patient": "string",
        }


class TestFindings:
    def test_findings_of_the_stages_are_there_before_the_measurement(self, lake: LakeView) -> None:
        frame = lake.findings("a")
        found = values(frame[frame.code == "duplicate-identical"], "severity", "stage", "subject", "count")
        assert found == [("info", "extract", "sub-1", 1)]

    def test_measured_findings_include_those_of_the_measurement(self, lake: LakeView, trees: tuple[Tree, Tree]) -> None:
        measure("a", trees[0].lake, trees[0].settings)
        frame = lake.findings("a")
        assert {"extract", "measure"} <= set(frame.stage)
        assert str(frame["count"].dtype) == "Int64"

    def test_the_lake_is_read_dataset_by_dataset(self, lake: LakeView) -> None:
        assert set(lake.findings().dataset) == {"a"}
        assert len(lake.findings("b")) == 0


class TestCompleteness:
    def test_a_measured_dataset_has_a_row_for_each_tag(self, lake: LakeView, trees: tuple[Tree, Tree]) -> None:
        measure("a", trees[0].lake, trees[0].settings)
        frame = lake.completeness("a")
        rows = frame[(frame.keyword == "Rows") & (frame.level == "instance") & (frame.group_by == "all")]
        assert values(rows, "n_applicable", "n_filled", "n_absent") == [(3, 2, 1)]
        assert str(frame.n_filled.dtype) == "Int64"
        assert len(lake.completeness()) == len(frame)

    def test_an_old_column_is_refused_by_its_new_name(self, lake: LakeView) -> None:
        with pytest.raises(LakeQueryError, match=r"^column n_some is now n_partial$"):
            lake.completeness(columns=["tag", "n_some"])

    def test_a_dataset_that_was_not_measured_is_refused(self, lake: LakeView) -> None:
        with pytest.raises(LakeQueryError, match=r"^dataset b has not been measured: run `dicom-etl measure b` first$"):
            lake.completeness("b")
        assert len(lake.completeness()) == 0


def test_uploads_are_those_of_all_servers(lake: LakeView, trees: tuple[Tree, Tree]) -> None:
    row = {
        "dataset": "a",
        "type": "ImagingStudy",
        "id": "x",
        "is_external": False,
        "state": "stored",
        "http_status": 201,
        "attempts": 1,
        "time": NOON,
    }
    with trees[0].lake.lock("a", "test"):
        for server in ("one_80", "two_80"):
            rows = [row | {"server": server}]
            trees[0].lake.write_rows(UPLOAD_LEDGER, rows, server=server, dataset="a")
    frame = lake.uploads()
    assert values(frame, "server", "type", "state", "http_status", "is_external", "unit") == [
        ("one_80", "ImagingStudy", "stored", 201, False, None),
        ("two_80", "ImagingStudy", "stored", 201, False, None),
    ]
    kinds = [str(frame[name].dtype) for name in ("server", "state", "http_status", "is_external", "time")]
    assert kinds == ["category", "category", "Int32", "boolean", "datetime64[us, UTC]"]
    assert frame.time[0] == pd.Timestamp(NOON)
    assert values(lake.uploads("a", columns=["id", "server"]), "id", "server") == [("x", "one_80"), ("x", "two_80")]
    assert len(lake.uploads("b")) == 0


class TestOpenLake:
    def test_a_folder_without_a_lake_is_refused_and_stays_empty(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        with pytest.raises(LakeQueryError, match=r"no lake at .*empty: name the folder that contains lake\.json"):
            dicom_etl.open_lake(tmp_path / "empty")  # type: ignore[arg-type]  # a Path works, too
        assert list((tmp_path / "empty").iterdir()) == []

    def test_a_lake_lists_its_datasets(self, lake: LakeView) -> None:
        assert lake.datasets == ["a", "b"]
        assert repr(lake).startswith("LakeView('")

    def test_the_package_imports_neither_pandas_nor_tables(self) -> None:
        code = (
            "import sys, dicom_etl; assert 'open_lake' in dir(dicom_etl); "
            "print([name for name in ('pandas', 'pyarrow', 'pydicom') if name in sys.modules])"
        )
        process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert process.stdout == "[]\n"


class TestWrongArguments:
    @pytest.mark.parametrize("root", ["unknown-file-system://bucket/lake", "none"])
    def test_a_location_that_cannot_be_opened_is_one_sentence(self, root: str) -> None:
        with pytest.raises(LakeQueryError, match=root):
            dicom_etl.open_lake(root)

    def test_numbers_are_refused_as_columns_and_subjects(self, lake: LakeView) -> None:
        with pytest.raises(LakeQueryError, match="has no column '1'"):
            lake.headers("a", columns=[1])  # type: ignore[list-item]
        with pytest.raises(LakeQueryError, match="a subject is a text, such as 'sub-1', not 1"):
            lake.headers("a", subject=1)  # type: ignore[arg-type]
