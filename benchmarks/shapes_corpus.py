"""Datasets of different shapes: the same DICOM files over few subjects or over many.

The scanners are those of `realistic.py`. Each is encoded once, with a study, a series and a patient that are then
replaced in its bytes, so that hundreds of thousands of files are written in minutes: UIDs and dates by others of the
same length, wherever they are, and whole elements where a value has a length of its own. The n-th file of a scanner is
the same in each shape but for its patient, its study, its series and its number in the series.

Left out of what scanners write: the private headers of up to 100 KB, deflated data sets, and pixels (a frame has a few
hundred bytes).
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from typing import NamedTuple

from benchmarks import encoding
from benchmarks.corpora import WRITTEN
from benchmarks.encoding import CODECS, elements, encode, tag_of
from benchmarks.profiles import Patient, Series
from benchmarks.realistic import SeriesFiles, Study

_TEMPLATE_DATE = "20230917"  # the date of the general elements of `profiles.py`
_TEMPLATE_STUDY = "1.2.840.99999.2.1000000000"
_TEMPLATE_INSTANCE = "1000000000000"
_LARGE = 10  # a subject of more files has two studies
_PERIOD = 2_000  # positions and times start again after so many files of a scanner, so that a series ends on its day

_SUBJECT = "SpecificCharacterSet InstitutionName PatientName PatientID PatientSex PatientBirthDate".split()
_STUDY = "AccessionNumber StudyTime PatientAge".split()
_SERIES = ["SeriesNumber"]


def _scanner(
    modality: str, vendor: str, description: str, syntax: encoding.Syntax, traits: str, rows: int = 16
) -> Series:
    return Series(modality, vendor, description, syntax, frozenset(traits.split()), rows, rows)


SCANNERS = (
    _scanner("MR", "siemens-mr", "t2_tse_tra", encoding.EXPLICIT, "undefined"),
    _scanner("CT", "ge-ct", "CHEST 1.25MM", encoding.EXPLICIT, "anatomy"),
    _scanner("MR", "philips-mr", "T1 mDIXON", encoding.EXPLICIT, "undefined dynamic"),
    _scanner("CT", "toshiba-ct", "AC CT", encoding.IMPLICIT, "undefined anatomy"),
    _scanner("PT", "siemens-pt", "PET WB", encoding.EXPLICIT, "undefined"),
    _scanner("MR", "ge-mr", "Ax T2 FLAIR", encoding.EXPLICIT, "undefined anatomy"),
    _scanner("US", "philips-us", "Abdomen", encoding.JPEG, "undefined", rows=8),  # of four frames
    _scanner("PT", "ge-pt", "PET WB", encoding.IMPLICIT, "undefined anatomy"),
    _scanner("MG", "hologic-mg", "L MLO", encoding.EXPLICIT, "anatomy"),
    _scanner("DX", "fuji-dx", "Chest PA", encoding.JPEG_LOSSLESS, "anatomy"),
)
_PIXEL_BYTES = 512  # 16 x 16, or 4 frames of 8 x 8, of two bytes


class Language(NamedTuple):
    """Names of a hospital and of patients in one character set; `=` separates the groups of a PN (PS3.5 6.2.1)."""

    charset: str
    hospital: str
    family_names: tuple[str, ...]
    given_names: tuple[str, ...]


def _language(charset: str, hospital: str, family_names: str, given_names: str) -> Language:
    return Language(charset, hospital, tuple(family_names.split()), tuple(given_names.split()))


LANGUAGES = (
    _language("ISO_IR 100", "Klinikum Beispielstädt", "Müßig Jäger Weiß Schütz", "Jörg Käthe Götz Änne"),
    _language("", "Example Hospital", "Example Sample Specimen Nobody", "Ann Bob Carol Dave"),
    _language(
        "\\ISO 2022 IR 87",
        "Example",
        "Yamada=山田=やまだ Satou=佐藤=さとう Suzuki=鈴木=すずき Tanaka=田中=たなか",
        "Tarou=太郎=たろう Hanako=花子=はなこ Jirou=次郎=じろう Yuki=雪=ゆき",
    ),
    _language("ISO_IR 192", "Νοσοκομείο", "Παπαδοπούλου Νικολάου Γεωργίου Δημητρίου", "Ελένη Μαρία Γιώργος Νίκος"),
    _language("ISO_IR 100", "Hôpital de l'Exemple", "Fictif Lefèvre Mercier Noël", "Zoé René Aimée Loïc"),
    _language("ISO_IR 192", "示例医院", "王 李 张 刘", "小东 小红 大明 丽华"),
)


@dataclass(frozen=True)
class Shape:
    """A dataset that was written; `paths` in the order of writing, subject by subject."""

    root: Path
    paths: tuple[str, ...]
    studies: int
    series: int
    size: int  # bytes


def write_shape(folder: Path, subjects: int, files_per_subject: int) -> Shape:
    """Write a dataset below `folder`, as primary/sub-*/sam-*/*.dcm: one sample per study, and one patient per subject.

    A subject of more than 10 files has two studies, others have one; a study of more than one file has two series.
    Studies take the scanners in turn; each scanner has a tenth of the files where their number is a multiple of 200.
    """
    writer = _Writer(folder)
    for subject in range(subjects):
        studies = 2 if files_per_subject > _LARGE else 1
        for sample, files in enumerate(_shares(files_per_subject, studies), 1):
            writer.write_study(subject, sample, files)
    return Shape(folder, tuple(writer.paths), writer.studies, writer.series, writer.size)


def change_file(path: Path) -> bytes:
    """Give one element of a file another value, and the file a later modification time; returns the former content."""
    former = path.read_bytes()
    changed = former.replace(b"tech03", b"tech04")  # OperatorsName
    assert changed != former, f"{path} has no operator tech03"
    path.write_bytes(changed)
    os.utime(path, (WRITTEN + 60, WRITTEN + 60))
    return former


def restore_file(path: Path, content: bytes) -> None:
    """Undo `change_file`."""
    path.write_bytes(content)
    os.utime(path, (WRITTEN, WRITTEN))


def _shares(files: int, number: int) -> list[int]:
    """Files in nearly equal shares; none is empty."""
    return [share for n in range(number) if (share := files // number + (n < files % number))]


def _patient(subject: int) -> Patient:
    """The patient of a subject. Names repeat after some thousands, PatientIDs never."""
    language = LANGUAGES[subject % len(LANGUAGES)]
    number = subject // len(LANGUAGES)
    family = language.family_names[number % 4].split("=")
    given = language.given_names[(number + number // 4) % 4].split("=")
    alphabetic, *others = (f"{one}^{other}" for one, other in zip(family, given, strict=True))
    return Patient(
        "=".join([f"{alphabetic}^{chr(ord('A') + number // 16 % 26)}", *others]),
        f"MRN-{subject + 1:06}",
        "FM"[subject % 2],
        f"{1935 + subject * 7 % 60}{1 + subject % 12:02}{1 + subject % 28:02}",
        language.charset,
        language.hospital,
    )


def _study_date(study: int) -> str:
    return f"{2014 + study % 10}{1 + study * 5 % 12:02}{1 + study * 3 % 28:02}"


def _age(birth_date: str, date: str) -> str:
    years = int(date[:4]) - int(birth_date[:4]) - (date[4:] < birth_date[4:])
    return f"{years:03}Y"


class _Writer:
    """Writes studies one after the other, and counts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths: list[str] = []
        self.studies = self.series = self.size = 0
        self.instances = [count() for _ in SCANNERS]

    def write_study(self, subject: int, sample: int, files: int) -> None:
        """Write a study as a sample of a subject."""
        folder = self.folder / "primary" / f"sub-{subject + 1:06}" / f"sam-{sample}"
        folder.mkdir(parents=True)
        scanner, names = self.studies % len(SCANNERS), count(1)
        for number, length in enumerate(_shares(files, 2), 1):
            encoded = _template(scanner).series(subject, self.studies, number, self.series)
            for position in range(length):
                content = encoded.instance(next(self.instances[scanner]), position)
                self._write(f"{folder}/{next(names):05}.dcm", content)
            self.series += 1
        self.studies += 1

    def _write(self, path: str, content: bytes) -> None:
        with open(path, "wb", buffering=0) as file:  # noqa: PTH123  (a Path for each file costs as much as its opening)
            file.write(content)
        os.utime(path, (WRITTEN, WRITTEN))
        self.paths.append(path)
        self.size += len(content)


@cache
def _template(scanner: int) -> _Template:
    return _Template(scanner)


class _Template:
    """The bytes of a scanner's files: blocks that only need other UIDs and dates, and slots for elements between them.

    `blocks` and `slots` alternate; the last block holds the pixel data.
    """

    def __init__(self, scanner: int) -> None:
        rng = random.Random(scanner)
        kind = SCANNERS[scanner]
        patient = Patient("", "", "", "", "", "")
        study = Study("", patient, _TEMPLATE_STUDY, _TEMPLATE_DATE, together=False)
        self.scanner, self.files = scanner, SeriesFiles(kind, study, 1, rng, b"", scale=1)
        self.instance_root = f"{self.files.vendor.uid_root}.1"
        slots = {*map(tag_of, [*_SUBJECT, *_STUDY, *_SERIES]), *self.files.varying(0, "")}
        self.blocks, self.slots = [b""], list[int]()
        for tag in sorted(slots | self.files.encoded.keys()):
            if tag in slots:
                self.slots.append(tag)
                self.blocks.append(b"")
            else:
                self.blocks[-1] += self.files.encoded[tag]
        fragments = 4 if kind.modality == "US" else 1
        self.blocks[-1] += encoding.pixel_data(rng.randbytes(_PIXEL_BYTES), kind.syntax, fragments=fragments)
        meta = encoding.file_meta(
            self.files.sop_class,
            f"{self.instance_root}.{_TEMPLATE_INSTANCE}",
            kind.syntax,
            ImplementationClassUID=f"{self.files.vendor.uid_root}.1",
        )
        self.meta = encoding.part10(meta, b"", encoding.EXPLICIT)

    def series(self, subject: int, study: int, number: int, series: int) -> _EncodedSeries:
        """The series `number` of a study; `study` and `series` count those of the dataset."""
        patient, date = _patient(subject), _study_date(study)
        known = {
            "SpecificCharacterSet": patient.charset,
            "InstitutionName": patient.hospital,
            "PatientName": patient.name,
            "PatientID": patient.number,
            "PatientSex": patient.sex,
            "PatientBirthDate": patient.birth_date,
            "AccessionNumber": f"A{study + 1:08}",
            "StudyTime": f"08{study % 60:02}{study * 7 % 60:02}",
            "PatientAge": _age(patient.birth_date, date),
            "SeriesNumber": str(number),
        }
        values = {
            tag: encode(tag, vr, value, self.files.kind.syntax, CODECS[patient.charset])
            for tag, (vr, value) in elements({keyword: value for keyword, value in known.items() if value}).items()
        }
        absent = {tag_of(keyword): b"" for keyword, value in known.items() if not value}
        changes = {
            self.files.uid: f"{self.files.vendor.uid_root}.{10**13 + series}.1",
            _TEMPLATE_STUDY: f"1.2.840.99999.2.{10**9 + study}",
            _TEMPLATE_DATE: date,
        }
        return _EncodedSeries(self, tuple(self._pieces(values | absent, changes)))

    def _pieces(self, values: Mapping[int, bytes], changes: Mapping[str, str]) -> Iterator[bytes | int]:
        """Blocks and known elements; the tags of those that differ from file to file."""
        for position, block in enumerate(self.blocks):
            if position:
                tag = self.slots[position - 1]
                yield values.get(tag, tag)
            for former, new in changes.items():
                block = block.replace(former.encode(), new.encode())  # noqa: PLW2901
            yield block


@dataclass(frozen=True)
class _EncodedSeries:
    """A series whose files lack nothing but the elements that differ from file to file."""

    template: _Template
    pieces: tuple[bytes | int, ...]

    def instance(self, index: int, position: int) -> bytes:
        """The content of the file `index` of the scanner, at a position in its series."""
        files, syntax = self.template.files, self.template.files.kind.syntax
        files.rng.seed(self.template.scanner * 10**9 + index)
        number = str(int(_TEMPLATE_INSTANCE) + self.template.scanner * 10**9 + index)
        varying = files.varying(index % _PERIOD, f"{self.template.instance_root}.{number}")
        varying[tag_of("InstanceNumber")] = "IS", str(position + 1)
        if index % 100 == 99:  # now and then an element is missing
            varying.pop(tag_of("SliceLocation"), None)
        encoded = {tag: encode(tag, vr, value, syntax, "ascii") for tag, (vr, value) in varying.items()}
        pieces = [piece if isinstance(piece, bytes) else encoded.get(piece, b"") for piece in self.pieces]
        return b"".join([self.template.meta.replace(_TEMPLATE_INSTANCE.encode(), number.encode()), *pieces])
