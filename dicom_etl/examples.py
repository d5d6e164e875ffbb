"""The example tree of `dicom-etl example DIR`: two small SPARC datasets that share one patient.

Here belong the tables that say what the example holds (patients, studies, series, sheets, oddities), and
the few functions that turn them into bytes. Whatever reads such a tree does not: nothing in the package
imports this module but the command, and the tests that want a realistic dataset.

The images are the test files inside pydicom's wheel (MIT), read from the installed package and never
downloaded. About half are copied byte for byte; the others get a new patient, new dates and new UIDs, so
that they tell a story. All names are fictional. The same call gives the same bytes on any day and machine.
"""

import csv
import io
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

import openpyxl
import pydicom
from pydicom.dataset import FileDataset
from pydicom.uid import generate_uid

__all__ = ["ExampleTree", "write_examples"]

SETTINGS_NAME = "dicom-etl.toml"
DATASET_NAMES = ("breast", "heart")
MARKER = b"# An example tree of dicom-etl."
"""The settings file of an example begins so; a folder without it is somebody's own and is never rewritten."""

TEST_FILES = Path(pydicom.__file__).parent / "data" / "test_files"
WRITTEN = datetime(2024, 2, 1, tzinfo=UTC)
"""Stands wherever a format or the file system asks for the time of writing."""

# Sheets ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """One row of a subjects sheet."""

    dataset: str
    subject: str
    age: str
    sex: str
    age_category: str
    group: str
    disorder: str = "n/a"


@dataclass(frozen=True)
class Sample:
    """One sample; `listed` says whether samples sheet and manifest know it."""

    dataset: str
    subject: str
    sample: str
    kind: str
    location: str
    laterality: str = ""
    listed: bool = True


SUBJECTS = (
    Subject("breast", "sub-1", "52 years", "Female", "middle adulthood", "screening"),
    Subject("breast", "sub-2", "49 years", "Female", "middle adulthood", "symptomatic", "breast lump"),
    # The header says 041Y, as in the published example of a DICOM dataset in SDS form.
    Subject("breast", "sub-3", "30y", "Female", "prime adult stage", "symptomatic", "breast carcinoma"),
    # Neither sex nor age is in this subject's headers: only the sheet knows them.
    Subject("breast", "sub-4", "67 years", "Female", "late adulthood", "therapy", "breast carcinoma"),
    # Enrolled and never imaged: no folder.
    Subject("breast", "sub-5", "Not Defined", "Female", "Not Defined", "screening"),
    Subject("heart", "sub-1", "43 years", "Male", "prime adult stage", "calcium scoring"),
    Subject("heart", "sub-2", "52 years", "Female", "middle adulthood", "control"),
    Subject("heart", "sub-3", "47 years", "Male", "middle adulthood", "calcium scoring"),
    Subject("heart", "sub-4", "76 years", "Male", "late adulthood", "calcium scoring", "asked-answered-unknown"),
)

# In breast each subject's samples begin at sam-1 again, as sparc-me numbers them; in heart a sample's name
# is unique in the dataset, as the rules of SDS ask. Real datasets do either.
SAMPLES = (
    Sample("breast", "sub-1", "sam-1", "DCE-MRI image", "breast", "Right"),
    Sample("breast", "sub-1", "sam-2", "MRI image", "breast", "Left"),
    Sample("breast", "sub-1", "sam-3", "structured report", "breast"),
    Sample("breast", "sub-2", "sam-1", "MRI image", "breast", "Left"),
    Sample("breast", "sub-2", "sam-2", "ultrasound image", "breast", "Left"),
    Sample("breast", "sub-2", "sam-3", "CT image", "chest"),
    Sample("breast", "sub-3", "sam-1", "DCE-MRI image", "breast"),
    Sample("breast", "sub-3", "sam-2", "segmentation", "breast"),
    Sample("breast", "sub-3", "sam-3", "bone scan", "whole body"),
    Sample("breast", "sub-4", "sam-1", "planning CT image", "breast", "Right"),
    Sample("breast", "sub-4", "sam-2", "radiotherapy plan", "breast", "Right"),
    Sample("breast", "sub-4", "sam-3", "radiotherapy dose", "breast", "Right"),
    Sample("heart", "sub-1", "sam-1", "gated CT image", "heart"),
    Sample("heart", "sub-1", "sam-2", "CT localizer", "chest"),
    Sample("heart", "sub-1", "sam-3", "MRI image", "neck"),
    Sample("heart", "sub-2", "sam-4", "cine MRI image", "heart"),
    Sample("heart", "sub-2", "sam-5", "electrocardiogram", "heart"),
    Sample("heart", "sub-2", "sam-6", "echocardiogram", "heart"),
    Sample("heart", "sub-3", "sam-7", "radiograph", "cervical spine"),
    Sample("heart", "sub-3", "sam-8", "CT image", "head"),
    Sample("heart", "sub-4", "sam-9", "CT image", "heart"),
    # Added to the folder after the sheets were made.
    Sample("heart", "sub-4", "sam-10", "screen capture", "heart", listed=False),
)

# Images ------------------------------------------------------------------------------------------------

Value: TypeAlias = str | int | None
"""A new value of an element; None takes the element out."""
Changes: TypeAlias = Mapping[str, Value]


@dataclass(frozen=True)
class Study:
    """A study that is made here: its patient, and the elements that all of its instances share."""

    patient: str
    date: str
    changes: Changes = field(default_factory=dict)


@dataclass(frozen=True)
class Series:
    """A series: its place (dataset/subject/sample), its file names, the test files it comes from.

    `FOLDER/*` as a source stands for all files of a folder, in the order of their names.
    With no `study` the files are copied byte for byte, and keep patient, UIDs and gaps. With one they are
    saved again under the study's patient. `phases` writes every source so many times, as a dynamic series
    does; `steps` is what an element grows by from phase to phase.
    """

    place: str
    names: str
    sources: tuple[str, ...]
    study: str | None = None
    changes: Changes = field(default_factory=dict)
    phases: int = 1
    steps: Mapping[str, int] = field(default_factory=dict)


PATIENTS: Mapping[str, Changes] = {
    # The person whom the two datasets share.
    "ada": {
        "PatientID": "DEMO-0042",
        "PatientName": "Fictional^Ada",
        "PatientSex": "F",
        "PatientAge": "052Y",
    },
    "grete": {
        "PatientID": "DEMO-0107",
        "PatientName": "Müller-Beispiel^Grete",
        "PatientSex": "F",
        "PatientAge": "049Y",
        "SpecificCharacterSet": "ISO_IR 100",
    },
    # De-identified as the public breast MRI collections are: one date stands for all.
    "anonymous": {
        "PatientID": "ANONYMOUS",
        "PatientName": "ANONYMOUS",
        "PatientSex": "",
        "PatientAge": "041Y",
        "PatientIdentityRemoved": "YES",
        "DeidentificationMethod": "example: names removed, dates replaced",
    },
    # The patient of pydicom's 50 tiny CT files, which are copied as they are.
    "jan": {"PatientID": "12345678", "PatientName": "Citizen^Jan", "PatientSex": "", "PatientAge": None},
    # The example name of PS3.5 H.3.2. Its two series write it in two character sets.
    "taro": {
        "PatientID": "DEMO-0333",
        "PatientName": "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう",
        "PatientSex": "M",
        "PatientAge": "076Y",
    },
}

STUDIES: Mapping[str, Study] = {
    # No TimezoneOffsetFromUTC: the dataset's time zone decides. No birth date: the heart study has it.
    "ada breast": Study(
        "ada",
        "20180614",
        {
            "StudyTime": "045357",
            "StudyID": "2",
            "StudyDescription": "MRI BREAST BILATERAL",
            "AccessionNumber": "A18-0614",
        },
    ),
    "ada heart": Study(
        "ada",
        "20190205",
        {
            "PatientBirthDate": "19660312",
            "StudyDescription": "Cardiac MRI",
            "AccessionNumber": "A19-0205",
            "TimezoneOffsetFromUTC": "+1300",
        },
    ),
    "ada ecg": Study("ada", "20190205", {"PatientBirthDate": "19660312", "AccessionNumber": "A19-0206"}),
    "ada echo": Study("ada", "20190207", {"StudyDescription": "Echocardiogram"}),
    "grete mri": Study("grete", "20170822", {"StudyDescription": "MR Mamma"}),
    "grete us": Study("grete", "20170810", {"SpecificCharacterSet": "ISO_IR 192"}),
    "grete ct": Study("grete", "20170829", {"StudyTime": "112700", "StudyDescription": "CT Thorax"}),
    "anonymous mri": Study(
        "anonymous",
        "19900101",
        {
            "StudyTime": "132645.921000",
            "StudyID": "1",
            "StudyDescription": "MRI BREAST",
            "AccessionNumber": "",
            "StationName": None,
        },
    ),
    "anonymous bone": Study("anonymous", "19900101", {"StudyTime": "122500", "StudyID": "2"}),
    "jan therapy": Study("jan", "20200921", {"StudyTime": "153557", "StudyID": "RT1"}),
    "taro ct": Study("taro", "20191019", {"StudyDescription": "CT HEART"}),
    "taro captures": Study("taro", "20191019", {"StudyDescription": "3D HEART"}),
}

_MR = "dicomdirtests/98892003"
_CD = "dicomdirtests/TINY_ALPHA"
_CD_FOLDER = "PT000000/ST000000/SE000000"

SERIES = (
    # breast/sub-1: the shared patient, Philips MR.
    Series(
        "breast/sub-1/sam-1",
        "1-{n:03}.dcm",
        (f"{_MR}/MR1/5641",),
        "ada breast",
        {"BodyPartExamined": "BREAST"},
    ),
    Series(
        "breast/sub-1/sam-1",
        "2-{n:03}.dcm",
        (f"{_MR}/MR700/*",),
        "ada breast",
        {
            "BodyPartExamined": "BREAST",
            "Laterality": "R",
            "SeriesDescription": "T1 dynamic right",
            "ProtocolName": "T1 dynamic",
        },
    ),
    Series(
        "breast/sub-1/sam-2",
        "1-{n:03}.dcm",
        (f"{_MR}/MR2/6935", f"{_MR}/MR2/6605", f"{_MR}/MR2/6273"),
        "ada breast",
        {
            "BodyPartExamined": "BREAST",
            "Laterality": "L",
            "SeriesDescription": "T2 left",
            "ProtocolName": "T2",
        },
    ),
    Series(
        "breast/sub-1/sam-3",
        "report.dcm",
        ("test-SR.dcm",),
        "ada breast",
        {"SeriesNumber": 900, "SeriesDescription": "Report"},
    ),
    # breast/sub-2: three vendors and character sets. One image in six transfer syntaxes, with neither a
    # body part nor a side.
    Series(
        "breast/sub-2/sam-1",
        "1-{n:03}.dcm",
        (
            "MR_small.dcm",
            "MR_small_implicit.dcm",
            "MR_small_bigendian.dcm",
            "MR_small_RLE.dcm",
            "MR_small_jp2klossless.dcm",
            "MR_small_jpeg_ls_lossless.dcm",
        ),
        "grete mri",
    ),
    Series(
        "breast/sub-2/sam-2",
        "1-{n:03}.dcm",
        ("examples_rgb_color.dcm", "examples_jpeg2k.dcm"),
        "grete us",
        {"BodyPartExamined": "BREAST", "Laterality": "L"},
    ),
    Series("breast/sub-2/sam-3", "1-{n:03}.dcm", ("CT_small.dcm",), "grete ct", {"BodyPartExamined": "CHEST"}),
    # breast/sub-3: de-identified. The body part is a word that no table knows. A Siemens console names its
    # files .IMA.
    Series(
        "breast/sub-3/sam-1",
        "MR-{n:04}.IMA",
        ("examples_overlay.dcm",),
        "anonymous mri",
        {"BodyPartExamined": "MAMMA", "SeriesDescription": "t1 vibe dyn"},
        phases=3,
        steps={"AcquisitionNumber": 1},
    ),
    Series(
        "breast/sub-3/sam-2",
        "seg.dcm",
        ("liver_1frame.dcm",),
        "anonymous mri",
        {"SeriesDescription": "Tumour", "SeriesNumber": 300},
    ),
    Series("breast/sub-3/sam-3", "1-{n:03}.dcm", ("JPEG2000.dcm", "JPEG-lossy.dcm"), "anonymous bone"),
    # breast/sub-4: a CD's folder as it came, without extensions, then the plan and dose of the therapy.
    Series("breast/sub-4/sam-1", f"{_CD_FOLDER}/{{source}}", (f"{_CD}/{_CD_FOLDER}/*",)),
    Series("breast/sub-4/sam-2", "plan.dcm", ("rtplan.dcm",), "jan therapy"),
    Series("breast/sub-4/sam-3", "dose.dcm", ("rtdose.dcm",), "jan therapy"),
    # heart/sub-1: a gated CT and an MR of the neck vessels, as they are: GE and Philips, no body part.
    Series("heart/sub-1/sam-1", "1-{n:03}.dcm", ("dicomdirtests/98892001/CT5N/*",)),
    Series("heart/sub-1/sam-2", "1-{n:03}.dcm", ("dicomdirtests/98892001/CT2N/*",)),
    Series("heart/sub-1/sam-3", "1-{n:03}.dcm", (f"{_MR}/MR1/15820",)),
    Series("heart/sub-1/sam-3", "2-{n:03}.dcm", (f"{_MR}/MR2/15970",)),
    # heart/sub-2: the shared patient again, in other studies: cine MR, ECG, echo of 30 frames.
    Series("heart/sub-2/sam-4", "1-{n:03}.dcm", (f"{_MR}/MR1/4919",), "ada heart", {"BodyPartExamined": "HEART"}),
    Series(
        "heart/sub-2/sam-4",
        "2-{n:03}.dcm",
        (f"{_MR}/MR2/4950", f"{_MR}/MR2/5011", f"{_MR}/MR2/4981"),
        "ada heart",
        {
            "BodyPartExamined": "HEART",
            "SeriesDescription": "Cine short axis",
            "ProtocolName": "Cine SA",
            "TriggerTime": 0,
        },
        phases=8,
        steps={"TriggerTime": 95},
    ),
    Series("heart/sub-2/sam-5", "ecg.dcm", ("waveform_ecg.dcm",), "ada ecg"),
    Series("heart/sub-2/sam-6", "echo.dcm", ("examples_ybr_color.dcm",), "ada echo"),
    # heart/sub-3: what else the archive held of the patient, as it is: Agfa CR and GE CT, sex empty.
    Series("heart/sub-3/sam-7", "1-{n:03}.dcm", ("dicomdirtests/77654033/CR1/*",)),
    Series("heart/sub-3/sam-7", "2-{n:03}.dcm", ("dicomdirtests/77654033/CR2/*",)),
    Series("heart/sub-3/sam-7", "3-{n:03}.dcm", ("dicomdirtests/77654033/CR3/*",)),
    Series("heart/sub-3/sam-8", "1-{n:03}.dcm", ("dicomdirtests/77654033/CT2/*",)),
    # heart/sub-4: a Hitachi CT with an empty manufacturer, and screen captures with none.
    Series(
        "heart/sub-4/sam-9",
        "1-{n:03}.dcm",
        ("J2K_pixelrep_mismatch.dcm",),
        "taro ct",
        {"BodyPartExamined": "HEART"},
    ),
    Series(
        "heart/sub-4/sam-10",
        "1-{n:03}.dcm",
        ("SC_rgb_dcmtk_+eb+cr.dcm", "SC_rgb_jpeg_dcmtk.dcm", "SC_rgb_rle.dcm", "SC_rgb_small_odd.dcm"),
        "taro captures",
        {"SpecificCharacterSet": "ISO_IR 192", "SeriesDescription": "Captures"},
    ),
)

FORGOTTEN = (
    "AdmissionID",
    "CurrentPatientLocation",
    "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
    "InstitutionAddress",
    "InstitutionName",
    "InstitutionalDepartmentName",
    "OperatorsName",
    "OtherPatientIDs",
    "OtherPatientIDsSequence",
    "OtherPatientNames",
    "PatientAddress",
    "PatientIdentityRemoved",
    "PatientSize",
    "PatientWeight",
    "PregnancyStatus",
    "RequestAttributesSequence",
    "RequestingPhysician",
    "TimezoneOffsetFromUTC",
)
"""What the sources say of their own patient, place and staff, and a series that is made here does not."""
EMPTIED = ("PatientBirthDate", "ReferringPhysicianName")
"""The same, of Type 2: these are emptied, not taken out."""
DATES = (
    "InstanceCreationDate",
    "SeriesDate",
    "AcquisitionDate",
    "ContentDate",
    "PerformedProcedureStepStartDate",
    "RTPlanDate",
)
DATE_TIMES = ("AcquisitionDateTime", "ObservationDateTime")

# What real trees contain besides -----------------------------------------------------------------------

JUNK: Mapping[str, bytes] = {
    "breast/.DS_Store": b"\x00\x00\x00\x01Bud1" + bytes(120),
    # What macOS leaves beside a file on a foreign file system (AppleDouble, RFC 1740): the name ends in
    # .dcm, the content is no DICOM.
    "breast/primary/sub-1/sam-1/._2-001.dcm": b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        " + bytes(96),
    "breast/primary/sub-2/sam-2/notes.dcm": b"The second view was reported on paper, there is no image.\n",
    "heart/primary/sub-1/sam-1/Thumbs.db": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(504),
    "heart/primary/sub-3/sam-8/1-005.dcm": b"",
}
COPIED: Mapping[str, str] = {
    "breast/primary/sub-4/sam-1/DICOMDIR": f"{_CD}/DICOMDIR",
}
DUPLICATES: Mapping[str, str] = {
    "breast/primary/sub-2/sam-1/1-001 copy.dcm": "breast/primary/sub-2/sam-1/1-001.dcm",
}
TRUNCATED: Mapping[str, int] = {
    # The last 512 bytes are the pixels: half of them are lost, the header is whole.
    "breast/primary/sub-1/sam-2/1-003.dcm": -256,
    # Only so many bytes are left: the cut is after SOPInstanceUID and before StudyInstanceUID.
    "heart/primary/sub-2/sam-4/2-024.dcm": 700,
}

# Datasets ----------------------------------------------------------------------------------------------

Rows: TypeAlias = list[list[str]]


@dataclass(frozen=True)
class Template:
    """How one version of the SDS template writes its sheets: extension, encoder, rows and columns."""

    extension: str
    encode: Callable[[Rows], bytes]
    description: tuple[tuple[str, ...], ...]
    subjects: tuple[str, ...]
    samples: tuple[str, ...]
    manifest: tuple[str, ...]
    extra: Mapping[str, bytes] = field(default_factory=dict)


def _xlsx(rows: Rows) -> bytes:
    """A workbook of one sheet, with the same bytes at each call.

    openpyxl stamps the archive's members and its properties with the present time, and zlib's output
    depends on its version: so the members are written again, stored, under one date.
    """
    book = openpyxl.Workbook()
    book.properties.created = WRITTEN.replace(tzinfo=None)
    sheet = book.worksheets[0]
    for row in rows:
        sheet.append([cell or None for cell in row])
    stamped, plain = io.BytesIO(), io.BytesIO()
    book.save(stamped)
    with zipfile.ZipFile(stamped) as source, zipfile.ZipFile(plain, "w") as target:
        for name in source.namelist():
            member = zipfile.ZipInfo(name, WRITTEN.timetuple()[:6])
            member.create_system = 3  # the default differs between Windows and the rest
            target.writestr(member, _without_clock(name, source.read(name)))
    return plain.getvalue()


def _without_clock(name: str, content: bytes) -> bytes:
    if name != "docProps/core.xml":
        return content
    stamp = WRITTEN.strftime("%Y-%m-%dT%H:%M:%SZ").encode()
    return re.sub(rb"(<dcterms:modified[^>]*>)[^<]*", rb"\g<1>" + stamp, content)


def _csv(rows: Rows) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


TEMPLATES: Mapping[str, Template] = {
    "breast": Template(
        "xlsx",
        _xlsx,
        description=(
            ("Metadata element", "Description", "Example", "Value", "Value 2", "Value 3"),
            ("Metadata Version", "SDS version number", "2.0.0", "2.0.0"),
            ("Type", "Experimental or computational", "experimental", "experimental"),
            ("Basic information",),
            ("Title", "Title of the dataset", "", "Example of breast imaging"),
            ("Subtitle", "A short description", "", "Test files of pydicom in the shape of a study"),
            ("Keywords", "Keywords that help to find the dataset", "", "breast", "MRI", "DICOM"),
            ("Study information",),
            ("Study purpose", "What the study was for", "", "To show what dicom-etl does"),
            ("Study organ system", "Organ systems of the study", "", "breast"),
            ("Contributor information",),
            ("Contributor name", "Last, First", "", "Fictional, Ada"),
            ("Contributor role", "Role by DataCite", "", "DataCollector"),
            ("Participant information",),
            ("Number of subjects", "Rows of subjects", "1", "{subjects}"),
            ("Number of samples", "Rows of samples", "0", "{samples}"),
        ),
        subjects=(
            "subject id",
            "pool id",
            "subject experimental group",
            "age",
            "sex",
            "species",
            "strain",
            "RRID for strain",
            "age category",
            "also in dataset",
            "member of",
            "laboratory internal id",
            "date of birth",
            "disease or disorder",
        ),
        samples=(
            "sample id",
            "subject id",
            "was derived from",
            "pool id",
            "sample experimental group",
            "sample type",
            "sample anatomical location",
            "also in dataset",
            "member of",
            "laboratory internal id",
            "pathology",
            "laterality",
        ),
        manifest=("filename", "timestamp", "description", "file type"),
    ),
    "heart": Template(
        "csv",
        _csv,
        description=(
            ("Metadata element", "Description", "Example", "Value", "Value 2", "Value 3"),
            ("Metadata version", "SDS version number", "3.0.2", "3.0.2"),
            ("Dataset type", "Experimental, computational or device", "experimental", "experimental"),
            ("Standards information",),
            ("Data standard", "Abbreviation of the standard", "sds", "sds"),
            ("Data standard version", "Version of the standard", "3.0.2", "3.0.2"),
            ("Basic information",),
            ("Title", "Title of the dataset", "", "Example of heart imaging"),
            ("Description", "What the dataset holds", "", "Test files of pydicom in the shape of a study"),
            ("Keywords", "Keywords that help to find the dataset", "", "heart", "CT", "DICOM"),
            ("Study information",),
            ("Study purpose", "What the study was for", "", "To show what dicom-etl does"),
            ("Study organ system", "Organ systems of the study", "", "heart"),
            ("Contributor information",),
            ("Contributor name", "Last, First", "", "Fictional, Ada"),
            ("Contributor role", "Role by DataCite", "", "DataCollector"),
            ("Participant information",),
            ("Number of subjects", "Rows of subjects", "1", "{subjects}"),
            ("Number of samples", "Rows of samples", "0", "{samples}"),
            ("Number of sites", "Rows of sites", "0", "0"),
            ("Number of performances", "Rows of performances", "0", "0"),
        ),
        subjects=(
            "subject id",
            "pool id",
            "subject experimental group",
            "age",
            "sex",
            "species",
            "strain",
            "RRID for strain",
            "age category",
            "also in dataset",
            "member of",
            "metadata only",
            "number of directly derived samples",
            "laboratory internal id",
            "date of birth",
            "disease or disorder",
        ),
        samples=(
            "sample id",
            "subject id",
            "was derived from",
            "pool id",
            "sample experimental group",
            "sample type",
            "sample anatomical location",
            "also in dataset",
            "member of",
            "metadata only",
            "number of directly derived samples",
            "laboratory internal id",
            "pathology",
            "laterality",
        ),
        manifest=(
            "filename",
            "timestamp",
            "description",
            "file type",
            "entity",
            "data modality",
            "also in dataset",
        ),
        extra={".dss": b"(sds 3.0.2)\n"},
    ),
}

README = """\
# Example of {dataset} imaging

Written by `dicom-etl example`. The images are test files of pydicom (MIT licence), some under a new patient
and new dates. Names and persons are fictional; no image shows what its folder says.
"""

SETTINGS = (
    MARKER.decode()
    + """ `dicom-etl example` wrote it and can write it again.
#
# Two datasets that share one patient. Try, in this folder:
#   dicom-etl audit breast heart     what the tags hold, and what that costs
#   dicom-etl run breast heart       everything up to the FHIR resources
# Paths are relative to this file.

# The namespace of the ids that are made here: an id is a UUID from (namespace, type, key) and
# from the secret key that DICOM_ETL_ID_KEY or id_key_file gives. Choose both for your institution and never change
# them, for other ones mean other ids.
namespace = "https://imaging.demo"

# Where header tables, resources, findings and reports go.
lake = "lake"

[datasets.breast]
root = "breast"
# Scanners write local times, most of them without an offset. FHIR wants the offset: it comes from here
# where TimezoneOffsetFromUTC is not in the header.
time_zone = "Pacific/Auckland"
# Who gives out the PatientIDs. Two datasets with the same authority mean the same person by the same
# PatientID, here DEMO-0042. Without it a PatientID counts within its own dataset alone.
assigning_authority = "urn:oid:2.25.323467493119269171179165005637713612697"

[datasets.heart]
root = "heart"
time_zone = "Pacific/Auckland"
assigning_authority = "urn:oid:2.25.323467493119269171179165005637713612697"

# With a FHIR server, `dicom-etl run` uploads too. A token is never written here: it comes from the
# environment. Remove the # of the two lines:
# [fhir]
# url = "http://127.0.0.1:8080/fhir"
"""
)


@dataclass(frozen=True)
class ExampleTree:
    """What `write_examples` wrote: the folder, its settings file, and the names of its datasets."""

    directory: Path
    settings_file: Path
    datasets: tuple[str, ...]


def write_examples(directory: Path, *, force: bool = False) -> ExampleTree:
    """Write the two example datasets and their settings file into `directory`.

    An example tree that is there already and is the same is left as it is (a `lake` beside it does not
    matter). `force` makes a changed one new: the settings file and the two dataset folders are replaced
    with all that is in them.

    Raises:
        FileExistsError: `directory` is a file, or holds something else, or holds an example tree that
            differs and `force` is not set. Nothing is changed then.
        FileNotFoundError: pydicom is installed without its test files.
    """
    files = example_files()
    tree = ExampleTree(directory, directory / SETTINGS_NAME, DATASET_NAMES)
    if _is_fresh(directory):
        _write(directory, files)
    elif not _is_example(directory):
        raise FileExistsError(f"{directory} exists and is not an example tree: choose a new or empty folder")
    elif _read(directory) != files:
        if not force:
            raise FileExistsError(
                f"{directory} holds an example tree that was changed: choose another folder, or force it "
                "to be written anew"
            )
        _remove(directory)
        _write(directory, files)
    return tree


def example_files() -> dict[str, bytes]:
    """Every file of the example: path relative to its folder, with slashes -> content."""
    if not TEST_FILES.is_dir():
        raise FileNotFoundError(f"pydicom has no test files in {TEST_FILES}: install it from its wheel")
    # The settings file is first, so that a tree whose writing was interrupted is known as ours.
    files = {SETTINGS_NAME: SETTINGS.encode()}
    for dataset in DATASET_NAMES:
        images = dict(_images(dataset))
        files |= _sheets(dataset, list(images)) | images
    files |= JUNK
    files |= {path: (TEST_FILES / source).read_bytes() for path, source in COPIED.items()}
    files |= {path: files[original] for path, original in DUPLICATES.items()}
    files |= {path: files[path][:kept] for path, kept in TRUNCATED.items()}
    return files


# Images ------------------------------------------------------------------------------------------------


def _images(dataset: str) -> Iterator[tuple[str, bytes]]:
    """Path and content of each DICOM file that the table of series asks for."""
    for series in (row for row in SERIES if row.place.startswith(f"{dataset}/")):
        folder = series.place.replace("/", "/primary/", 1)
        instances = [(phase, path) for phase in range(series.phases) for path in _sources(series)]
        for n, (phase, path) in enumerate(instances, start=1):
            name = series.names.format(n=n, source=path.name)
            content = path.read_bytes()
            if series.study is not None:
                content = _reheaded(content, series, series.study, phase, n if len(instances) > 1 else None)
            yield f"{folder}/{name}", content


def _sources(series: Series) -> Iterator[Path]:
    for source in series.sources:
        path = TEST_FILES / source
        yield from sorted(path.parent.iterdir()) if path.name == "*" else [path]


def _reheaded(content: bytes, series: Series, key: str, phase: int, number: int | None) -> bytes:
    """The instance under the study `key` and its patient; `number` is its InstanceNumber, if it gets one."""
    study = STUDIES[key]
    header = pydicom.dcmread(io.BytesIO(content))
    _move_dates(header, study.date)
    patient = PATIENTS[study.patient]
    _apply(header, dict.fromkeys(FORGOTTEN) | dict.fromkeys(EMPTIED, ""))
    _apply(header, {"StudyDate": study.date} | dict(patient) | dict(study.changes) | dict(series.changes))
    _apply(header, {name: int(header.get(name) or 0) + step * phase for name, step in series.steps.items()})
    if number is not None:
        header.InstanceNumber = number
    _set_uids(header, key, f"{series.place}/{series.names}", number or 1)
    saved = io.BytesIO()
    header.save_as(saved)
    return saved.getvalue()


def _apply(header: FileDataset, changes: Changes) -> None:
    for keyword, value in changes.items():
        if value is not None:
            setattr(header, keyword, value)
        elif keyword in header:
            delattr(header, keyword)


def _move_dates(header: FileDataset, date: str) -> None:
    """Bring filled dates to the day of the study. The times stay, and so their order; so do empty dates."""
    for keyword in DATES:
        if header.get(keyword):
            setattr(header, keyword, date)
    for keyword in DATE_TIMES:
        if header.get(keyword):
            setattr(header, keyword, date + str(header[keyword].value)[8:])


def _set_uids(header: FileDataset, study: str, series: str, number: int) -> None:
    """New UIDs, each a hash of the row's own names, so that every call gives the same."""
    header.StudyInstanceUID = _uid(study)
    header.SeriesInstanceUID = _uid(study, series)
    header.SOPInstanceUID = _uid(study, series, str(number))
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
    if "FrameOfReferenceUID" in header:
        header.FrameOfReferenceUID = _uid(study, str(header.FrameOfReferenceUID))


def _uid(*names: str) -> str:
    return str(generate_uid(entropy_srcs=["dicom-etl example", "/".join(names)]))


# Sheets ------------------------------------------------------------------------------------------------


def _sheets(dataset: str, images: Sequence[str]) -> dict[str, bytes]:
    template = TEMPLATES[dataset]
    subjects = [_subject_row(row) for row in SUBJECTS if row.dataset == dataset]
    listed = [row for row in SAMPLES if row.dataset == dataset and row.listed]
    counts = {"subjects": len(subjects), "samples": len(listed)}
    sheets: dict[str, Rows] = {
        "dataset_description": _description(template.description, counts),
        "subjects": _table(template.subjects, subjects),
        "samples": _table(template.samples, [_sample_row(row) for row in listed]),
        "manifest": _table(template.manifest, list(_manifest_rows(listed, images))),
    }
    files = {f"{dataset}/{name}.{template.extension}": template.encode(rows) for name, rows in sheets.items()}
    files[f"{dataset}/README.md"] = README.format(dataset=dataset).encode()
    return files | {f"{dataset}/{name}": content for name, content in template.extra.items()}


def _description(lines: Sequence[Sequence[str]], counts: Mapping[str, int]) -> Rows:
    """The lines filled up to the width of the first, as a spreadsheet exports them."""
    return [[cell.format(**counts) for cell in line] + [""] * (len(lines[0]) - len(line)) for line in lines]


def _table(columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> Rows:
    return [list(columns), *([row.get(column, "") for column in columns] for row in rows)]


def _subject_row(subject: Subject) -> dict[str, str]:
    return {
        "subject id": subject.subject,
        "subject experimental group": subject.group,
        "age": subject.age,
        "sex": subject.sex,
        "species": "Homo sapiens",
        "strain": "n/a",
        "RRID for strain": "n/a",
        "age category": subject.age_category,
        "metadata only": "FALSE",
        "disease or disorder": subject.disorder,
    }


def _sample_row(sample: Sample) -> dict[str, str]:
    return {
        "sample id": sample.sample,
        "subject id": sample.subject,
        "was derived from": sample.subject,
        "sample experimental group": "n/a",
        "sample type": sample.kind,
        "sample anatomical location": sample.location,
        "metadata only": "FALSE",
        "laterality": sample.laterality,
    }


def _manifest_rows(samples: Sequence[Sample], images: Sequence[str]) -> Iterator[dict[str, str]]:
    """One row for each image of a listed sample, by its path in the dataset."""
    for sample in samples:
        folder = f"{sample.dataset}/primary/{sample.subject}/{sample.sample}/"
        for path in images:
            if path.startswith(folder):
                yield {
                    "filename": path.removeprefix(f"{sample.dataset}/"),
                    "timestamp": WRITTEN.isoformat(),
                    "description": f"{sample.kind} of {sample.subject}",
                    "file type": Path(path).suffix,
                    "entity": sample.sample,
                    "data modality": sample.kind,
                }


# The folder --------------------------------------------------------------------------------------------


def _is_fresh(directory: Path) -> bool:
    return not directory.exists() or (directory.is_dir() and not any(directory.iterdir()))


def _is_example(directory: Path) -> bool:
    settings = directory / SETTINGS_NAME
    return settings.is_file() and settings.read_bytes().startswith(MARKER)


def _read(directory: Path) -> dict[str, bytes]:
    """The settings file and the dataset folders, in the shape of `example_files`."""
    paths = [path for name in DATASET_NAMES for path in (directory / name).rglob("*") if path.is_file()]
    paths.append(directory / SETTINGS_NAME)
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in paths}


def _remove(directory: Path) -> None:
    for folder in (directory / name for name in DATASET_NAMES):
        if folder.is_symlink() or folder.is_file():
            folder.unlink()
        elif folder.exists():
            shutil.rmtree(folder)


def _write(directory: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        # Inventories hold modification times, so those are the same everywhere too.
        os.utime(path, (WRITTEN.timestamp(), WRITTEN.timestamp()))
