"""The benchmark of shapes: the same valid files in few or many subjects, and a figure in each row of its table."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pydicom
import pytest
from pydicom.dataset import FileDataset
from pydicom.encaps import generate_fragments
from pydicom.tag import BaseTag

from benchmarks.shapes import main, rows_read
from benchmarks.shapes_corpus import Shape, change_file, restore_file, write_shape
from dicom_etl.sources import Scan, TreeSource

# elements that depend on patient, study and position in the series; all others are the same in each shape
REPLACED = set(
    """
    SpecificCharacterSet InstanceCreationDate StudyDate SeriesDate AcquisitionDate ContentDate StudyTime AccessionNumber
    InstitutionName ReferencedStudySequence ReferencedPerformedProcedureStepSequence ReferencedImageSequence PatientName
    PatientID PatientBirthDate PatientSex PatientAge StudyInstanceUID SeriesInstanceUID SeriesNumber InstanceNumber
    FrameOfReferenceUID PerformedProcedureStepStartDate PerformedProcedureStepID RequestAttributesSequence
""".split()
)


def read(shape: Shape) -> list[FileDataset]:
    return [pydicom.dcmread(path) for path in shape.paths]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Shape:
    return write_shape(tmp_path_factory.mktemp("wide"), 5, 40)


@pytest.fixture(scope="module")
def tall(tmp_path_factory: pytest.TempPathFactory) -> Shape:
    return write_shape(tmp_path_factory.mktemp("tall"), 200, 1)


def _get_constant_elements(header: FileDataset) -> dict[BaseTag, object]:
    return {element.tag: element.value for element in header if element.keyword not in REPLACED}


class TestFiles:
    def test_a_shape_is_always_the_same(self, tmp_path: Path) -> None:
        first, second = (write_shape(tmp_path / name, 3, 12) for name in ("a", "b"))
        assert [Path(p).relative_to(first.root) for p in first.paths] == [
            Path(p).relative_to(second.root) for p in second.paths
        ]
        for file, other in zip(map(Path, first.paths), map(Path, second.paths), strict=True):
            assert file.read_bytes() == other.read_bytes()
            assert file.stat().st_mtime_ns == other.stat().st_mtime_ns == 1_700_000_000 * 10**9

    def test_all_files_are_listed_and_counted(self, wide: Shape) -> None:
        files = sorted(str(path) for path in wide.root.rglob("*") if path.is_file())
        assert files == sorted(wide.paths)
        assert len(files) == 200
        assert wide.size == sum(Path(path).stat().st_size for path in files)

    def test_a_shape_is_a_dataset_with_subjects_and_samples(self, wide: Shape) -> None:
        scan = Scan()
        entries = list(TreeSource("ds", wide.root).scan(scan))
        assert scan.findings == []
        assert Counter((entry.subject, entry.sample) for entry in entries) == {
            (f"sub-00000{subject}", f"sam-{sample}"): 20 for subject in range(1, 6) for sample in (1, 2)
        }

    def test_a_large_subject_has_two_studies_of_two_series(self, wide: Shape) -> None:
        headers = read(wide)
        assert (wide.studies, wide.series) == (10, 20)
        assert Counter(header.PatientID for header in headers) == {f"MRN-00000{number}": 40 for number in range(1, 6)}
        assert Counter(header.StudyInstanceUID for header in headers) == {
            f"1.2.840.99999.2.{1_000_000_000 + study}": 20 for study in range(10)
        }
        assert set(Counter(header.SeriesInstanceUID for header in headers).values()) == {10}
        assert len({(header.StudyInstanceUID, header.SeriesInstanceUID) for header in headers}) == 20
        assert len({header.SOPInstanceUID for header in headers}) == 200
        first = [header for header in headers if header.SeriesInstanceUID == headers[0].SeriesInstanceUID]
        assert [header.InstanceNumber for header in first] == list(range(1, 11))

    def test_in_the_tall_shape_each_file_is_a_patient(self, tall: Shape) -> None:
        headers = read(tall)
        assert (tall.studies, tall.series) == (200, 200)
        for keyword in ("PatientID", "AccessionNumber", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
            assert len({header[keyword].value for header in headers}) == 200
        assert len({header.PatientBirthDate for header in headers}) > 100
        assert len({header.StudyDate for header in headers}) > 50
        assert len({str(header.PatientName) for header in headers}) > 150

    @pytest.mark.parametrize(
        ("index", "expected"),
        [
            (0, ("MR", "SIEMENS", "MRN-000001", "Müßig^Jörg^A", "19350101", "F", "20140101", "079Y")),
            (2, ("MR", "Philips Medical Systems", "MRN-000003", "Yamada^Tarou^A=山田^太郎=やまだ^たろう",
                 "19490303", "F", "20161107", "067Y")),
            (3, ("CT", "TOSHIBA", "MRN-000004", "Παπαδοπούλου^Ελένη^A", "19560404", "M", "20170410", "061Y")),
            (5, ("MR", "GE MEDICAL SYSTEMS", "MRN-000006", "王^小东^A", "19700606", "M", "20190216", "048Y")),
            (6, ("US", "Philips Medical Systems", "MRN-000007", "Jäger^Käthe^A", "19770707", "F", "20200719", "043Y")),
            (13, ("CT", "TOSHIBA", "MRN-000014", "Specimen^Carol^A", "19660214", "M", "20170612", "051Y")),
        ],
    )  # fmt: skip
    def test_patients_and_studies_have_different_values(
        self, tall: Shape, index: int, expected: tuple[str, ...]
    ) -> None:
        header = pydicom.dcmread(tall.paths[index])
        keywords = (
            "Modality Manufacturer PatientID PatientName PatientBirthDate PatientSex StudyDate PatientAge".split()
        )
        assert tuple(str(header[keyword].value) for keyword in keywords) == expected
        assert header.StudyInstanceUID == f"1.2.840.99999.2.{1_000_000_000 + index}"
        assert header.file_meta.MediaStorageSOPInstanceUID == header.SOPInstanceUID

    def test_references_within_a_file_follow_its_study_and_series(self, tall: Shape) -> None:
        header = pydicom.dcmread(tall.paths[3])
        assert header.ReferencedStudySequence[0].ReferencedSOPInstanceUID == "1.2.840.99999.2.1000000003"
        assert header.SeriesInstanceUID == "1.2.392.200036.9116.2.10000000000003.1"
        assert [item.ReferencedSOPInstanceUID for item in header.ReferencedImageSequence] == [
            "1.2.392.200036.9116.2.10000000000003.1.0.0",
            "1.2.392.200036.9116.2.10000000000003.1.0.1",
            "1.2.392.200036.9116.2.10000000000003.1.0.2",
        ]
        assert header.FrameOfReferenceUID == "1.2.840.99999.2.1000000003.9.1"
        assert header.RequestAttributesSequence[0].RequestedProcedureID == "RP20170410"
        assert header.PerformedProcedureStepID == "MR20170410081512"

    def test_there_are_several_modalities_scanners_and_encodings(self, tall: Shape) -> None:
        headers = read(tall)
        assert Counter(header.Modality for header in headers) == {
            "MR": 60,
            "CT": 40,
            "PT": 40,
            "US": 20,
            "MG": 20,
            "DX": 20,
        }
        assert len({(header.Manufacturer, header.ManufacturerModelName) for header in headers}) == 10
        assert Counter(header.file_meta.TransferSyntaxUID for header in headers) == {
            "1.2.840.10008.1.2": 40,
            "1.2.840.10008.1.2.1": 120,
            "1.2.840.10008.1.2.4.50": 20,
            "1.2.840.10008.1.2.4.70": 20,
        }
        assert len({str(header.get("SpecificCharacterSet")) for header in headers}) == 4
        assert 105 < sum(map(len, headers)) / 200 < 125
        assert all(any(element.tag.is_private_creator for element in header) for header in headers)
        assert all(header.ReferencedStudySequence for header in headers)

    def test_the_pixel_data_conforms_to_the_header(self, tall: Shape) -> None:
        for header in read(tall)[:10]:
            size = header.Rows * header.Columns * header.get("NumberOfFrames", 1) * header.BitsAllocated // 8
            if header.file_meta.TransferSyntaxUID.is_encapsulated:
                fragments = list(generate_fragments(header.PixelData))
                assert len(fragments) == header.get("NumberOfFrames", 1) + 1  # the first is the empty offset table
            else:
                assert len(header.PixelData) == size == 512

    def test_other_elements_are_the_same_in_each_shape(self, wide: Shape, tall: Shape) -> None:
        in_tall = {header.SOPInstanceUID: header for header in read(tall)}
        in_wide = {header.SOPInstanceUID: header for header in read(wide)}
        assert in_tall.keys() == in_wide.keys()
        for uid, header in in_tall.items():
            assert _get_constant_elements(header) == _get_constant_elements(in_wide[uid])

    def test_a_file_can_be_changed_and_restored(self, tmp_path: Path) -> None:
        path = Path(write_shape(tmp_path, 1, 1).paths[0])
        content = path.read_bytes()
        previous = change_file(path)
        assert pydicom.dcmread(path).OperatorsName == "tech04"
        assert path.stat().st_mtime == 1_700_000_060
        restore_file(path, previous)
        assert path.read_bytes() == content
        assert path.stat().st_mtime == 1_700_000_000


class TestFigures:
    def test_rows_of_row_groups_that_may_have_the_subject_are_counted(self, tmp_path: Path) -> None:
        units = ["sub-1"] * 3 + ["sub-2"] * 3 + ["sub-3"] * 2 + ["sub-4"] * 2
        pq.write_table(pa.table({"unit": units}), tmp_path / "0.parquet", row_group_size=4)  # 1112 2233 44
        pq.write_table(pa.table({"unit": ["sub-5"] * 5}), tmp_path / "1.parquet")
        tables = [tmp_path / "0.parquet", tmp_path / "1.parquet"]
        assert rows_read(tables, ["sub-1"]) == 4
        assert rows_read(tables, ["sub-2"]) == 8
        assert rows_read(tables, ["sub-4"]) == 2
        assert rows_read(tables, ["sub-1", "sub-5"]) == 5

    def test_row_groups_without_statistics_are_counted(self, tmp_path: Path) -> None:
        path = tmp_path / "0.parquet"
        pq.write_table(pa.table({"unit": ["sub-1", "sub-2"]}), path, row_group_size=1, write_statistics=False)
        assert rows_read([path], ["sub-1"]) == 2

    def test_a_table_named_after_its_subject_is_counted_whole(self, tmp_path: Path) -> None:
        for name, rows in (("sub-1", 3), ("sub-2", 7)):
            pq.write_table(pa.table({"path": ["p"] * rows}), tmp_path / f"{name}.parquet")
        assert rows_read(sorted(tmp_path.iterdir()), ["sub-1", "sub-2"]) == 7

    def test_the_memory_of_the_largest_child_process_is_measured(self) -> None:
        """In a separate process, since this one may have started servers for other tests."""
        program = """
import subprocess, sys
from benchmarks.usage import ChildMemory
hold = "import sys, time; content = b'x' * int(sys.argv[1]); time.sleep(1)"
with ChildMemory().watched() as memory:
    running = [subprocess.Popen([sys.executable, "-c", hold, size]) for size in ("1000", "200000000")]
    for process in running:
        process.wait()
print(memory.largest)
"""
        run = subprocess.run(
            [sys.executable, "-c", program], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
        )
        assert 200 < float(run.stdout) < 300


ROWS = {
    "subjects x files": r"20 x 3 +6 x 10 +60 x 1",
    "studies": r"20 +6 +60",
    "series": r"40 +12 +60",
    "bytes per file": None,
    "files written per second": None,
    "dcmread, CPU per file (us)": None,
    "dcmread and values, CPU per file (us)": None,
    "extract, x dcmread per core": None,
    "extract, x dcmread and values per core": None,
    "unchanged, CPU": None,
    "unchanged, wall": None,
    "one subject changed, CPU": None,
    "one subject changed, wall": None,
    "parent process": None,
    "largest worker": r"[\d,-]+ +[\d,-]+ +[\d,-]+",  # few files may be read without workers
    "files": None,
    "bytes": None,
    "bytes per instance": None,
    "largest footer of a header table (bytes)": None,
    "rows read for one subject": None,
}
NUMBERS = r"[\d,.]+ +[\d,.]+ +[\d,.]+"


class TestTable:
    def test_each_row_has_a_figure_for_each_shape(self, capsys: pytest.CaptureFixture[str]) -> None:
        main(["--files", "60"])
        table = capsys.readouterr().out

        assert re.search(r"^ +wide +middle +tall$", table, re.MULTILINE)
        for label, figures in ROWS.items():
            assert re.search(rf"^ *{re.escape(label)} +{figures or NUMBERS}$", table, re.MULTILINE), label
        for stage in ("crawl", "extract", "build", "measure", "report", "whole run"):
            assert len(re.findall(rf"^ +{stage} +{NUMBERS}$", table, re.MULTILINE)) == 2, stage  # CPU and wall

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--files", "50"], "--files must be a multiple of 20"),
            (["--shapes", "wide,flat"], "--shapes knows wide, middle, tall, not flat"),
            (["--workers", "0"], "--repeat and --workers must be at least 1"),
            (["--keep", "."], "--keep: . exists; name a new folder"),
        ],
    )
    def test_invalid_arguments_are_refused(
        self, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit):
            main(arguments)
        assert message in capsys.readouterr().err
