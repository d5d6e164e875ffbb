"""The example tree: what it holds, that it is the same each time, that it spares other people's files."""

import csv
import hashlib
import os
import socket
import subprocess
import sys
import tomllib
import zipfile
from collections import defaultdict
from pathlib import Path

import openpyxl
import pydicom
import pytest
from pydicom.dataset import FileDataset
from pydicom.errors import InvalidDicomError

from dicom_etl.examples import ExampleTree, write_examples

AUTHORITY = "urn:oid:2.25.323467493119269171179165005637713612697"
SHARED_PATIENT = "DEMO-0042"
WRITTEN = 1_706_745_600  # 2024-02-01T00:00:00Z

PHILIPS = "Philips Medical Systems, Inc."
GE = "GE MEDICAL SYSTEMS"
PLANNER = "Manufacturer name here"

# One row per series: place, PatientID, Modality, Manufacturer, study (numbered by hand), instances.
EXPECTED_SERIES = [
    ("breast/sub-1/sam-1", "DEMO-0042", "MR", PHILIPS, 1, 1),
    ("breast/sub-1/sam-1", "DEMO-0042", "MR", PHILIPS, 1, 7),
    ("breast/sub-1/sam-2", "DEMO-0042", "MR", PHILIPS, 1, 3),
    ("breast/sub-1/sam-3", "DEMO-0042", "SR", "", 1, 1),
    ("breast/sub-2/sam-1", "DEMO-0107", "MR", "TOSHIBA_MEC", 2, 6),
    ("breast/sub-2/sam-2", "DEMO-0107", "US", "G.E. Medical Systems", 3, 2),
    ("breast/sub-2/sam-3", "DEMO-0107", "CT", GE, 4, 1),
    ("breast/sub-3/sam-1", "ANONYMOUS", "MR", "SIEMENS", 5, 3),
    ("breast/sub-3/sam-2", "ANONYMOUS", "SEG", "QIICR", 5, 1),
    ("breast/sub-3/sam-3", "ANONYMOUS", "NM", "GE Medical Systems", 6, 2),
    ("breast/sub-4/sam-1", "12345678", "CT", None, 7, 50),
    ("breast/sub-4/sam-2", "12345678", "RTPLAN", PLANNER, 8, 1),
    ("breast/sub-4/sam-3", "12345678", "RTDOSE", PLANNER, 8, 1),
    ("heart/sub-1/sam-1", "98890234", "CT", GE, 9, 5),
    ("heart/sub-1/sam-2", "98890234", "CT", GE, 9, 2),
    ("heart/sub-1/sam-3", "98890234", "MR", PHILIPS, 10, 1),
    ("heart/sub-1/sam-3", "98890234", "MR", PHILIPS, 10, 1),
    ("heart/sub-2/sam-4", "DEMO-0042", "MR", PHILIPS, 11, 1),
    ("heart/sub-2/sam-4", "DEMO-0042", "MR", PHILIPS, 11, 23),
    ("heart/sub-2/sam-5", "DEMO-0042", "ECG", "Mortara Instrument, Inc.", 12, 1),
    ("heart/sub-2/sam-6", "DEMO-0042", "US", "SonoSite, Inc.", 13, 1),
    ("heart/sub-3/sam-7", "77654033", "CR", "Agfa-Gevaert AG", 14, 1),
    ("heart/sub-3/sam-7", "77654033", "CR", "Agfa-Gevaert AG", 14, 1),
    ("heart/sub-3/sam-7", "77654033", "CR", "Agfa-Gevaert AG", 14, 1),
    ("heart/sub-3/sam-8", "77654033", "CT", GE, 15, 4),
    ("heart/sub-4/sam-10", "DEMO-0333", "OT", None, 16, 4),
    ("heart/sub-4/sam-9", "DEMO-0333", "CT", "", 17, 1),
]

STUDY_KEYWORDS = (
    "PatientID",
    "PatientName",
    "PatientSex",
    "PatientAge",
    "PatientBirthDate",
    "PatientIdentityRemoved",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "StudyDescription",
    "AccessionNumber",
    "TimezoneOffsetFromUTC",
)


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> ExampleTree:
    return write_examples(tmp_path_factory.mktemp("example") / "demo")


@pytest.fixture(scope="module")
def headers(example: ExampleTree) -> dict[str, FileDataset]:
    """Every file that says which study it belongs to, by its path."""
    found = {}
    for path in _files(example.directory):
        try:
            header = pydicom.dcmread(example.directory / path, stop_before_pixels=True)
        except InvalidDicomError:
            continue
        if "StudyInstanceUID" in header:
            found[path] = header
    return found


def _files(directory: Path) -> list[str]:
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())


def _content(directory: Path) -> dict[str, bytes]:
    return {path: (directory / path).read_bytes() for path in _files(directory)}


def _digest(directory: Path) -> str:
    digest = hashlib.sha256()
    for path, content in _content(directory).items():
        digest.update(f"{path} {(directory / path).stat().st_mtime_ns}\n".encode() + content)
    return digest.hexdigest()


def _place(path: str) -> str:
    dataset, _primary, subject, sample, *_ = path.split("/")
    return f"{dataset}/{subject}/{sample}"


def _subject(path: str) -> str:
    return _place(path).rsplit("/", 1)[0]


def _sheet(path: Path) -> list[list[str]]:
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.reader(file))
    rows = openpyxl.load_workbook(path, read_only=True).worksheets[0].iter_rows(values_only=True)
    return [["" if cell is None else str(cell) for cell in row] for row in rows]


def _table(path: Path) -> list[dict[str, str]]:
    columns, *rows = _sheet(path)
    return [dict(zip(columns, row, strict=True)) for row in rows]


# What it holds


def test_the_tree_names_its_settings_file_and_its_two_datasets(example: ExampleTree) -> None:
    assert example.datasets == ("breast", "heart")
    assert example.settings_file == example.directory / "dicom-etl.toml"
    assert sorted(path.name for path in example.directory.iterdir()) == ["breast", "dicom-etl.toml", "heart"]


def test_it_is_small(example: ExampleTree) -> None:
    assert len(_files(example.directory)) == 146
    assert sum(map(len, _content(example.directory).values())) < 4_000_000


def test_series_are_those_of_the_list(headers: dict[str, FileDataset]) -> None:
    instances = defaultdict(set)
    studies: dict[str, int] = {}
    numbers = {(place, modality): study for place, _, modality, _, study, _ in EXPECTED_SERIES}
    for path, header in headers.items():
        study = studies.setdefault(header.StudyInstanceUID, numbers[_place(path), header.Modality])
        place = _place(path), header.PatientID, header.Modality, header.get("Manufacturer"), study
        instances[place, header.SeriesInstanceUID].add(header.SOPInstanceUID)
    found = [(*place, len(uids)) for (place, _series), uids in instances.items()]
    assert sorted(found, key=str) == sorted(EXPECTED_SERIES, key=str)
    assert len(studies) == len(set(studies.values())) == 17
    assert len(headers) == 127  # 126 instances, one of them twice


def test_no_study_lies_under_two_subjects_or_has_two_patients(headers: dict[str, FileDataset]) -> None:
    subjects, patients = defaultdict(set), defaultdict(set)
    for path, header in headers.items():
        subjects[header.StudyInstanceUID].add(_subject(path))
        patients[header.StudyInstanceUID].add(header.PatientID)
    assert {len(names) for names in subjects.values()} == {1}
    assert {len(names) for names in patients.values()} == {1}


def test_each_subject_has_one_patient(headers: dict[str, FileDataset]) -> None:
    patients = defaultdict(set)
    for path, header in headers.items():
        patients[_subject(path)].add(header.PatientID)
    assert patients == {
        "breast/sub-1": {"DEMO-0042"},
        "breast/sub-2": {"DEMO-0107"},
        "breast/sub-3": {"ANONYMOUS"},
        "breast/sub-4": {"12345678"},
        "heart/sub-1": {"98890234"},
        "heart/sub-2": {"DEMO-0042"},
        "heart/sub-3": {"77654033"},
        "heart/sub-4": {"DEMO-0333"},
    }


def test_the_shared_patient_has_other_studies_in_each_dataset(headers: dict[str, FileDataset]) -> None:
    studies = defaultdict(set)
    for path, header in headers.items():
        if header.PatientID == SHARED_PATIENT:
            # PatientID identifies a person only where it was not removed.
            assert header.get("PatientIdentityRemoved") is None
            studies[path.split("/")[0]].add(header.StudyInstanceUID)
    assert {dataset: len(uids) for dataset, uids in studies.items()} == {"breast": 1, "heart": 3}
    assert not studies["breast"] & studies["heart"]


def test_the_shared_patients_birth_date_is_known_in_one_dataset_alone(
    headers: dict[str, FileDataset],
) -> None:
    dates = defaultdict(set)
    for path, header in headers.items():
        if header.PatientID == SHARED_PATIENT:
            dates[path.split("/")[0]].add(header.PatientBirthDate)
    assert dates == {"breast": {""}, "heart": {"", "19660312"}}


@pytest.mark.parametrize("keyword", STUDY_KEYWORDS)
def test_the_instances_of_a_study_agree(headers: dict[str, FileDataset], keyword: str) -> None:
    values = defaultdict(set)
    for header in headers.values():
        values[header.StudyInstanceUID].add(str(header.get(keyword)))
    assert [found for found in values.values() if len(found) > 1] == []


def test_dates_of_a_made_study_are_its_own_day(headers: dict[str, FileDataset]) -> None:
    report = headers["breast/primary/sub-1/sam-3/report.dcm"]
    assert (report.StudyDate, report.ContentDate) == ("20180614", "20180614")
    assert report.ObservationDateTime == "20180614184746"
    ecg = headers["heart/primary/sub-2/sam-5/ecg.dcm"]
    assert (ecg.StudyDate, ecg.AcquisitionDateTime) == ("20190205", "20190205105919")


def test_uids_are_valid_and_agree_with_the_file_meta_information(headers: dict[str, FileDataset]) -> None:
    for header in headers.values():
        assert header.file_meta.MediaStorageSOPInstanceUID == header.SOPInstanceUID
        assert header.SOPInstanceUID.is_valid
        assert header.SeriesInstanceUID.is_valid
        assert header.StudyInstanceUID.is_valid


def test_one_patient_is_de_identified_and_keeps_nothing_of_the_source(
    headers: dict[str, FileDataset],
) -> None:
    header = headers["breast/primary/sub-3/sam-1/MR-0001.IMA"]
    assert (header.PatientID, header.PatientIdentityRemoved) == ("ANONYMOUS", "YES")
    assert header.PatientBirthDate == ""
    assert {header.StudyDate, header.SeriesDate, header.ContentDate} == {"19900101"}
    for keyword in ("PatientAddress", "InstitutionName", "InstitutionAddress", "OperatorsName"):
        assert keyword not in header


def test_names_are_written_in_several_character_sets(headers: dict[str, FileDataset]) -> None:
    sets = defaultdict(set)
    for header in headers.values():
        sets[str(header.PatientName)].add(str(header.get("SpecificCharacterSet")))
    assert sets["Müller-Beispiel^Grete"] == {"ISO_IR 100", "ISO_IR 192"}
    assert sets["ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう"] == {"['ISO 2022 IR 13', 'ISO 2022 IR 87']", "ISO_IR 192"}


def test_body_parts_and_sides_are_known_unknown_and_missing(headers: dict[str, FileDataset]) -> None:
    found = {path: (header.get("BodyPartExamined"), header.get("Laterality")) for path, header in headers.items()}
    assert found["breast/primary/sub-1/sam-1/2-001.dcm"] == ("BREAST", "R")
    assert found["breast/primary/sub-1/sam-2/1-001.dcm"] == ("BREAST", "L")
    assert found["breast/primary/sub-2/sam-1/1-001.dcm"] == (None, "")
    assert found["breast/primary/sub-3/sam-1/MR-0001.IMA"] == ("MAMMA", None)
    assert found["heart/primary/sub-2/sam-4/2-001.dcm"] == ("HEART", None)
    assert found["heart/primary/sub-3/sam-7/1-001.dcm"] == ("CSPINE", "")


def test_a_cine_series_steps_through_the_heart_cycle(headers: dict[str, FileDataset]) -> None:
    cine = [headers[f"heart/primary/sub-2/sam-4/2-{n:03}.dcm"] for n in range(1, 24)]
    assert [header.InstanceNumber for header in cine] == list(range(1, 24))
    assert [header.TriggerTime for header in cine[::3]] == [0, 95, 190, 285, 380, 475, 570, 665]


def test_many_files_are_those_of_pydicom_byte_for_byte(example: ExampleTree) -> None:
    test_files = Path(pydicom.__file__).parent / "data" / "test_files"
    originals = {path.read_bytes() for path in test_files.rglob("*") if path.is_file()}
    same = [path for path, content in _content(example.directory).items() if content and content in originals]
    assert len(same) == 67  # 50 of the CD and its DICOMDIR, 9 of heart/sub-1, 7 of heart/sub-3


# What is odd


def test_junk_of_macos_and_windows_is_there(example: ExampleTree) -> None:
    content = _content(example.directory)
    assert content["breast/.DS_Store"].startswith(b"\x00\x00\x00\x01Bud1")
    assert content["breast/primary/sub-1/sam-1/._2-001.dcm"].startswith(b"\x00\x05\x16\x07")
    assert "breast/primary/sub-1/sam-1/2-001.dcm" in content
    assert content["heart/primary/sub-1/sam-1/Thumbs.db"].startswith(b"\xd0\xcf\x11\xe0")


def test_some_dcm_files_are_empty_or_text(example: ExampleTree) -> None:
    content = _content(example.directory)
    assert content["heart/primary/sub-3/sam-8/1-005.dcm"] == b""
    assert content["breast/primary/sub-2/sam-2/notes.dcm"].isascii()


def test_dicom_files_have_other_extensions_and_none(headers: dict[str, FileDataset]) -> None:
    extensions: dict[str, int] = defaultdict(int)
    for path in headers:
        extensions[Path(path).suffix] += 1
    assert extensions == {".dcm": 74, ".IMA": 3, "": 50}


def test_the_dicomdir_names_the_files_beside_it(example: ExampleTree) -> None:
    folder = example.directory / "breast/primary/sub-4/sam-1"
    records = pydicom.dcmread(folder / "DICOMDIR").DirectoryRecordSequence
    named = [folder.joinpath(*record.ReferencedFileID) for record in records if "ReferencedFileID" in record]
    assert len(named) == 50
    assert all(path.is_file() for path in named)


def test_one_instance_is_there_twice(example: ExampleTree, headers: dict[str, FileDataset]) -> None:
    paths = defaultdict(list)
    for path, header in headers.items():
        paths[header.SOPInstanceUID].append(path)
    original, copy = "breast/primary/sub-2/sam-1/1-001.dcm", "breast/primary/sub-2/sam-1/1-001 copy.dcm"
    assert [sorted(group) for group in paths.values() if len(group) > 1] == [[copy, original]]
    content = _content(example.directory)
    assert content[copy] == content[original]


def test_one_file_ends_within_its_pixels(example: ExampleTree) -> None:
    header = pydicom.dcmread(example.directory / "breast/primary/sub-1/sam-2/1-003.dcm", defer_size=16)
    assert header.SeriesDescription == "T2 left"
    whole = header.Rows * header.Columns * 2
    size = (example.directory / "breast/primary/sub-1/sam-2/1-003.dcm").stat().st_size
    other = (example.directory / "breast/primary/sub-1/sam-2/1-002.dcm").stat().st_size
    assert whole == 512
    assert other - size == 256


def test_one_file_ends_within_its_header(example: ExampleTree) -> None:
    header = pydicom.dcmread(example.directory / "heart/primary/sub-2/sam-4/2-024.dcm")
    assert "SOPInstanceUID" in header
    assert "StudyInstanceUID" not in header


# The sheets


@pytest.mark.parametrize(
    ("sheet", "first_columns"),
    [
        ("breast/dataset_description.xlsx", ["Metadata element", "Description", "Example", "Value"]),
        ("breast/subjects.xlsx", ["subject id", "pool id", "subject experimental group", "age", "sex"]),
        ("breast/samples.xlsx", ["sample id", "subject id", "was derived from"]),
        ("breast/manifest.xlsx", ["filename", "timestamp", "description", "file type"]),
        ("heart/dataset_description.csv", ["Metadata element", "Description", "Example", "Value"]),
        ("heart/subjects.csv", ["subject id", "pool id", "subject experimental group", "age", "sex"]),
        ("heart/samples.csv", ["sample id", "subject id", "was derived from"]),
        (
            "heart/manifest.csv",
            ["filename", "timestamp", "description", "file type", "entity", "data modality"],
        ),
    ],
)
def test_a_sheet_has_the_columns_of_its_template(example: ExampleTree, sheet: str, first_columns: list[str]) -> None:
    assert _sheet(example.directory / sheet)[0][: len(first_columns)] == first_columns


@pytest.mark.parametrize(
    ("sheet", "expected"),
    [
        (
            "breast/dataset_description.xlsx",
            {"Metadata Version": "2.0.0", "Number of subjects": "5", "Number of samples": "12"},
        ),
        (
            "heart/dataset_description.csv",
            {"Metadata version": "3.0.2", "Number of subjects": "4", "Number of samples": "9"},
        ),
    ],
)
def test_the_dataset_description_says_version_and_counts(
    example: ExampleTree, sheet: str, expected: dict[str, str]
) -> None:
    values = {row[0]: row[3] for row in _sheet(example.directory / sheet)[1:]}
    assert values.items() >= expected.items()


def test_subjects_sheets_say_sex_age_and_species(example: ExampleTree) -> None:
    rows = _table(example.directory / "breast/subjects.xlsx") + _table(example.directory / "heart/subjects.csv")
    assert [(row["subject id"], row["sex"], row["age"]) for row in rows] == [
        ("sub-1", "Female", "52 years"),
        ("sub-2", "Female", "49 years"),
        ("sub-3", "Female", "30y"),
        ("sub-4", "Female", "67 years"),
        ("sub-5", "Female", "Not Defined"),
        ("sub-1", "Male", "43 years"),
        ("sub-2", "Female", "52 years"),
        ("sub-3", "Male", "47 years"),
        ("sub-4", "Male", "76 years"),
    ]
    assert {row["species"] for row in rows} == {"Homo sapiens"}


def test_samples_sheets_say_location_and_laterality(example: ExampleTree) -> None:
    rows = _table(example.directory / "breast/samples.xlsx")
    found = {
        (row["subject id"], row["sample id"]): (row["sample anatomical location"], row["laterality"]) for row in rows
    }
    assert found["sub-1", "sam-1"] == ("breast", "Right")
    assert found["sub-1", "sam-2"] == ("breast", "Left")
    assert found["sub-2", "sam-3"] == ("chest", "")


def test_one_subject_has_no_folder_and_one_sample_no_row(example: ExampleTree) -> None:
    in_sheets, in_folders = set(), set()
    for dataset, extension in (("breast", "xlsx"), ("heart", "csv")):
        folder = example.directory / dataset
        for row in _table(folder / f"subjects.{extension}"):
            in_sheets.add(f"{dataset}/{row['subject id']}")
        for row in _table(folder / f"samples.{extension}"):
            in_sheets.add(f"{dataset}/{row['subject id']}/{row['sample id']}")
        for path in [*folder.glob("primary/sub-*"), *folder.glob("primary/sub-*/sam-*")]:
            in_folders.add(path.relative_to(example.directory).as_posix().replace("/primary", ""))
    assert in_sheets - in_folders == {"breast/sub-5"}
    assert in_folders - in_sheets == {"heart/sub-4/sam-10"}


def test_the_manifests_name_files_that_exist(example: ExampleTree) -> None:
    breast = [row["filename"] for row in _table(example.directory / "breast/manifest.xlsx")]
    heart = [row["filename"] for row in _table(example.directory / "heart/manifest.csv")]
    assert (len(breast), len(heart)) == (79, 44)
    assert all((example.directory / "breast" / name).is_file() for name in breast)
    assert all((example.directory / "heart" / name).is_file() for name in heart)
    assert "primary/sub-1/sam-1/2-001.dcm" in breast


# The settings


def test_the_settings_know_both_datasets_under_one_authority(example: ExampleTree) -> None:
    settings = tomllib.loads(example.settings_file.read_text(encoding="utf-8"))
    assert settings == {
        "namespace": "https://imaging.demo",
        "lake": "lake",
        "datasets": {
            name: {"root": name, "time_zone": "Pacific/Auckland", "assigning_authority": AUTHORITY}
            for name in ("breast", "heart")
        },
    }


def test_the_server_of_the_settings_needs_only_its_comment_signs_removed(example: ExampleTree) -> None:
    text = example.settings_file.read_text(encoding="utf-8")
    settings = tomllib.loads(text.replace("# [fhir]", "[fhir]").replace("# url", "url"))
    assert settings["fhir"] == {"url": "http://127.0.0.1:8095/fhir"}


# The same each time


def test_two_calls_write_the_same_bytes_at_the_same_time(tmp_path: Path, example: ExampleTree) -> None:
    again = write_examples(tmp_path / "again")
    assert _content(again.directory) == _content(example.directory)
    assert {(again.directory / path).stat().st_mtime for path in _files(again.directory)} == {WRITTEN}


def test_another_process_in_another_time_zone_writes_the_same(tmp_path: Path, example: ExampleTree) -> None:
    code = f"import pathlib, dicom_etl.examples.writer as e; e.write_examples(pathlib.Path({str(tmp_path)!r}, 'x'))"
    environment = os.environ | {"TZ": "Asia/Kathmandu", "PYTHONHASHSEED": "4711", "LC_ALL": "C"}
    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=root)
    assert _digest(tmp_path / "x") == _digest(example.directory)


def test_workbooks_hold_no_time_of_writing(example: ExampleTree) -> None:
    books = sorted((example.directory / "breast").glob("*.xlsx"))
    assert len(books) == 4
    for book in books:
        with zipfile.ZipFile(book) as archive:
            assert {member.date_time for member in archive.infolist()} == {(2024, 2, 1, 0, 0, 0)}
            core = archive.read("docProps/core.xml")
        assert core.count(b"2024-02-01T00:00:00Z") == 2


def test_nothing_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert write_examples(tmp_path / "demo").settings_file.is_file()


@pytest.mark.filterwarnings("error")
def test_nothing_is_warned_of(tmp_path: Path) -> None:
    write_examples(tmp_path)


def test_a_pydicom_without_its_test_files_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dicom_etl.examples.writer.TEST_FILES", tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="test files"):
        write_examples(tmp_path / "demo")
    assert not (tmp_path / "demo").exists()


# Never over other people's files


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    assert write_examples(tmp_path).settings_file == tmp_path / "dicom-etl.toml"


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_with_other_files_is_refused(tmp_path: Path, force: bool) -> None:
    (tmp_path / "breast").mkdir()
    (tmp_path / "breast" / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is not an example tree"):
        write_examples(tmp_path, force=force)
    assert _files(tmp_path) == ["breast/mine.txt"]


@pytest.mark.parametrize("force", [False, True])
def test_settings_that_are_not_ours_are_refused(tmp_path: Path, force: bool) -> None:
    (tmp_path / "dicom-etl.toml").write_text('namespace = "https://hospital.example"\n')
    with pytest.raises(FileExistsError, match="is not an example tree"):
        write_examples(tmp_path, force=force)
    assert _files(tmp_path) == ["dicom-etl.toml"]


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "demo").write_text("mine")
    with pytest.raises(FileExistsError, match="demo"):
        write_examples(tmp_path / "demo")


def test_an_unchanged_example_is_left_with_its_lake(tmp_path: Path) -> None:
    write_examples(tmp_path)
    (tmp_path / "lake").mkdir()
    (tmp_path / "lake" / "table.parquet").write_bytes(b"PAR1")
    before = _digest(tmp_path)
    write_examples(tmp_path)
    assert _digest(tmp_path) == before


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("dicom-etl.toml", b"# Example datasets of dicom-etl.\nnamespace = 'https://other.demo'\n"),
        ("heart/subjects.csv", b"subject id\n"),
        ("breast/primary/sub-9/new.dcm", b"new"),
    ],
)
def test_a_changed_example_is_refused_and_forced(
    tmp_path: Path, example: ExampleTree, path: str, content: bytes
) -> None:
    write_examples(tmp_path)
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).write_bytes(content)
    before = _digest(tmp_path)
    with pytest.raises(FileExistsError, match="was changed"):
        write_examples(tmp_path)
    assert _digest(tmp_path) == before
    write_examples(tmp_path, force=True)
    assert _digest(tmp_path) == _digest(example.directory)


def test_force_leaves_what_is_beside_the_datasets(tmp_path: Path) -> None:
    write_examples(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "heart" / "subjects.csv").unlink()
    write_examples(tmp_path, force=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "heart" / "subjects.csv").is_file()


def test_force_never_follows_a_link_out_of_the_folder(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine.txt").write_text("mine")
    demo = write_examples(tmp_path / "demo").directory
    (demo / "heart").rename(tmp_path / "moved")
    (demo / "heart").symlink_to(outside)
    write_examples(demo, force=True)
    assert _files(outside) == ["mine.txt"]
    assert not (demo / "heart").is_symlink()
