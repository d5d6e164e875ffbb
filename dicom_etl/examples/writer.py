"""Writes the example datasets from `data/`. The same call writes the same bytes on any day and machine.

The images are the test files inside pydicom's wheel (MIT licence), read from the installed package and never
downloaded. About half are copied byte for byte; the others get another patient, other dates and other UIDs. All names
are fictional.
"""

from __future__ import annotations

import csv
import io
import os
import re
import shutil
import tomllib
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import FileDataset
from pydicom.uid import generate_uid

SETTINGS_NAME = "dicom-etl.toml"
DATASET_NAMES = ("breast", "heart")
# The settings file of an example begins with this line; a folder without it is never overwritten.
MARKER = b"# Example datasets of dicom-etl."
TEST_FILES = Path(pydicom.__file__).parent / "data" / "test_files"
WRITTEN = datetime(2024, 2, 1, tzinfo=UTC)  # the time of writing, wherever a format or the file system needs one

SheetRows = list[list[str]]
Tags = Mapping[str, str | int | bool]  # by keyword; False removes an element


@dataclass(frozen=True)
class ExampleTree:
    """The folder that `write_examples` wrote, its settings file, and the names of its datasets."""

    directory: Path
    settings_file: Path
    datasets: tuple[str, ...]


def write_examples(directory: Path, *, force: bool = False) -> ExampleTree:
    """Write the two example datasets and their settings file into `directory`.

    An unchanged example tree is left as it is, also with a `lake` beside it. With `force`, a changed one is replaced:
    the settings file and the two dataset folders with everything in them.

    Raises:
        FileExistsError: `directory` is a file, or contains something else, or contains a changed example tree and
            `force` is not set. Nothing is changed then.
        FileNotFoundError: pydicom is installed without its test files.
    """
    files = make_example_files()
    tree = ExampleTree(directory, directory / SETTINGS_NAME, DATASET_NAMES)
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        _write_files(directory, files)
    elif not tree.settings_file.is_file() or not tree.settings_file.read_bytes().startswith(MARKER):
        raise FileExistsError(f"{directory} exists and is not an example tree: choose a new or empty folder")
    elif _read_files(directory) != files:
        if not force:
            raise FileExistsError(
                f"{directory} contains an example tree that was changed: choose another folder, or use --force to "
                "replace it"
            )
        _remove_datasets(directory)
        _write_files(directory, files)
    return tree


def make_example_files() -> dict[str, bytes]:
    """The content of each file of the example by its path below the folder, with slashes.

    Raises:
        FileNotFoundError: pydicom is installed without its test files.
    """
    if not TEST_FILES.is_dir():
        raise FileNotFoundError(f"pydicom has no test files in {TEST_FILES}: install it from its wheel")
    # The settings file is first: a tree whose writing was interrupted is recognised by it.
    files = {SETTINGS_NAME: _read_data(SETTINGS_NAME)}
    for dataset, sheet_format in _SHEET_FORMATS.items():
        images = dict(_make_images(dataset))
        files |= _make_sheets(dataset, sheet_format, list(images)) | images
    irregularities = _load_toml("irregularities.toml")
    for path, content in irregularities["files"].items():
        files[path] = content.get("text", "").encode() + bytes.fromhex(content.get("hex", ""))
        files[path] += bytes(content.get("zeros", 0))
    files |= {path: (TEST_FILES / source).read_bytes() for path, source in irregularities["copied"].items()}
    files |= {path: files[original] for path, original in irregularities["duplicated"].items()}
    files |= {path: files[path][:length] for path, length in irregularities["truncated"].items()}
    return files


def _read_data(name: str) -> bytes:
    return resources.files(__package__).joinpath("data", name).read_bytes()


@cache
def _load_toml(name: str) -> dict[str, Any]:
    return tomllib.loads(_read_data(name).decode())


# -- images -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Series:
    """A series of `images.toml`, which describes the fields."""

    folder: str
    names: str
    sources: Sequence[str]
    study: str | None = None
    tags: Tags = field(default_factory=dict)
    phases: int = 1
    steps: Mapping[str, int] = field(default_factory=dict)

    def find_sources(self) -> Iterator[Path]:
        """The test files of pydicom that the series is made from."""
        for source in self.sources:
            path = TEST_FILES / source
            yield from sorted(path.parent.iterdir()) if path.name == "*" else [path]


def _make_images(dataset: str) -> Iterator[tuple[str, bytes]]:
    """Path and content of each DICOM file of a dataset."""
    for series in (_Series(**row) for row in _load_toml("images.toml")["series"]):
        if not series.folder.startswith(f"{dataset}/"):
            continue
        folder = series.folder.replace("/", "/primary/", 1)
        instances = [(phase, path) for phase in range(series.phases) for path in series.find_sources()]
        for number, (phase, path) in enumerate(instances, start=1):
            content = path.read_bytes()
            if series.study is not None:
                content = _move_to_study(content, series, phase, number if len(instances) > 1 else None)
            yield f"{folder}/{series.names.format(n=number, source=path.name)}", content


def _move_to_study(content: bytes, series: _Series, phase: int, instance_number: int | None) -> bytes:
    """The instance under the study of its series and the patient of that study."""
    images = _load_toml("images.toml")
    study, changes = images["studies"][series.study], images["changes"]
    header = pydicom.dcmread(io.BytesIO(content))
    for keyword in (*changes["dates"], *changes["date_times"]):
        if header.get(keyword):
            time = str(header[keyword].value)[8:] if keyword in changes["date_times"] else ""
            setattr(header, keyword, study["date"] + time)
    _set_tags(header, dict.fromkeys(changes["removed"], False) | dict.fromkeys(changes["emptied"], ""))
    tags = images["patients"][study["patient"]] | study.get("tags", {}) | dict(series.tags)
    _set_tags(header, {"StudyDate": study["date"]} | tags)
    _set_tags(header, {name: int(header.get(name) or 0) + step * phase for name, step in series.steps.items()})
    if instance_number is not None:
        header.InstanceNumber = instance_number
    _set_uids(header, str(series.study), f"{series.folder}/{series.names}", instance_number or 1)
    saved = io.BytesIO()
    header.save_as(saved)
    return saved.getvalue()


def _set_tags(header: FileDataset, tags: Tags) -> None:
    for keyword, value in tags.items():
        if value is not False:
            setattr(header, keyword, value)
        elif keyword in header:
            delattr(header, keyword)


def _set_uids(header: FileDataset, study: str, series: str, instance_number: int) -> None:
    """UIDs that are a hash of the names of study and series, so that every call makes the same."""

    def make_uid(*names: str) -> str:
        return str(generate_uid(entropy_srcs=["dicom-etl example", "/".join(names)]))

    header.StudyInstanceUID = make_uid(study)
    header.SeriesInstanceUID = make_uid(study, series)
    header.SOPInstanceUID = make_uid(study, series, str(instance_number))
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
    if "FrameOfReferenceUID" in header:
        header.FrameOfReferenceUID = make_uid(study, str(header.FrameOfReferenceUID))


# -- sheets -----------------------------------------------------------------------------------------------------------


def _encode_xlsx(rows: SheetRows) -> bytes:
    """A workbook of one sheet, with the same bytes at each call.

    openpyxl writes the present time into the archive's members and its properties, and zlib's output depends on its
    version: so the members are written again, stored, under one date.
    """
    import openpyxl  # noqa: PLC0415  (only workbooks need it)

    book = openpyxl.Workbook()
    book.properties.created = WRITTEN.replace(tzinfo=None)
    sheet = book.worksheets[0]
    for row in rows:
        sheet.append([cell or None for cell in row])
    with_present_time, workbook = io.BytesIO(), io.BytesIO()
    book.save(with_present_time)
    time = WRITTEN.strftime("%Y-%m-%dT%H:%M:%SZ").encode()
    with zipfile.ZipFile(with_present_time) as source, zipfile.ZipFile(workbook, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name == "docProps/core.xml":
                content = re.sub(rb"(<dcterms:modified[^>]*>)[^<]*", rb"\g<1>" + time, content)
            member = zipfile.ZipInfo(name, WRITTEN.timetuple()[:6])
            member.create_system = 3  # the default differs between Windows and other systems
            target.writestr(member, content)
    return workbook.getvalue()


def _encode_csv(rows: SheetRows) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


@dataclass(frozen=True)
class _SheetFormat:
    """How a version of the SDS template writes its sheets."""

    extension: str
    encode: Callable[[SheetRows], bytes]
    manifest_columns: Sequence[str]
    extra_files: Mapping[str, bytes] = field(default_factory=dict)


_SHEET_FORMATS = {
    "breast": _SheetFormat("xlsx", _encode_xlsx, ("filename", "timestamp", "description", "file type")),
    "heart": _SheetFormat(
        "csv",
        _encode_csv,
        ("filename", "timestamp", "description", "file type", "entity", "data modality", "also in dataset"),
        {".dss": b"(sds 3.0.2)\n"},
    ),
}


def _make_sheets(dataset: str, sheet_format: _SheetFormat, images: Sequence[str]) -> dict[str, bytes]:
    """The sheets of a dataset and the other files beside its folder `primary`, by path."""
    sheets = {
        name: list(csv.reader(io.StringIO(_read_data(f"{dataset}/{name}.csv").decode())))
        for name in ("dataset_description", "subjects", "samples")
    }
    sheets["manifest"] = _make_manifest(dataset, sheets["samples"], images, sheet_format.manifest_columns)
    files = {f"{dataset}/{name}.{sheet_format.extension}": sheet_format.encode(rows) for name, rows in sheets.items()}
    files[f"{dataset}/README.md"] = _read_data("README.md").replace(b"{dataset}", dataset.encode())
    return files | {f"{dataset}/{name}": content for name, content in sheet_format.extra_files.items()}


def _make_manifest(dataset: str, sample_rows: SheetRows, images: Sequence[str], columns: Sequence[str]) -> SheetRows:
    """The manifest: a row for each image of a sample in the sheet, by its path in the dataset."""
    rows = [list(columns)]
    for sample in (dict(zip(sample_rows[0], cells, strict=True)) for cells in sample_rows[1:]):
        folder = f"{dataset}/primary/{sample['subject id']}/{sample['sample id']}/"
        for path in images:
            if path.startswith(folder):
                row = {
                    "filename": path.removeprefix(f"{dataset}/"),
                    "timestamp": WRITTEN.isoformat(),
                    "description": f"{sample['sample type']} of {sample['subject id']}",
                    "file type": Path(path).suffix,
                    "entity": sample["sample id"],
                    "data modality": sample["sample type"],
                }
                rows.append([row.get(column, "") for column in columns])
    return rows


# -- the folder -------------------------------------------------------------------------------------------------------


def _read_files(directory: Path) -> dict[str, bytes]:
    """The settings file and the dataset folders, in the shape of `make_example_files`."""
    paths = [path for name in DATASET_NAMES for path in (directory / name).rglob("*") if path.is_file()]
    paths.append(directory / SETTINGS_NAME)
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in paths}


def _remove_datasets(directory: Path) -> None:
    for folder in (directory / name for name in DATASET_NAMES):
        if folder.is_symlink() or folder.is_file():
            folder.unlink()
        elif folder.exists():
            shutil.rmtree(folder)


def _write_files(directory: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        # Inventories contain modification times, so those must be the same everywhere too.
        os.utime(path, (WRITTEN.timestamp(), WRITTEN.timestamp()))
