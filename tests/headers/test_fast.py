"""The fast reader gives the same results as the reference reader."""

import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.corpora import write_adverse, write_realistic
from dicom_etl.headers.fast import FastReader, ReadCounts
from tests.headers.compare import NoRow, RowContent, pydicom_data_files, read_fast, read_with_reference
from tests.headers.dicom_bytes import BIG_ENDIAN, TEXT_SR, element, instance, item, pydicom_files, sequence, siblings
from tests.headers.one_file_series import one_file_series

ROOT = Path(__file__).parents[2]

# Files that give a row, but never by a template. Their results are compared like all others.
UNSUPPORTED = {  # read by the reference reader
    "693_J2KI.dcm": "a group length before the pixel data",
    "693_J2KR.dcm": "a group length before the pixel data",
    "693_UNCI.dcm": "a group length before the pixel data",
    "693_UNCR.dcm": "a group length before the pixel data",
    "ExplVR_BigEnd.dcm": "a group length before the pixel data",
    "color-pl.dcm": "a group length before the pixel data",
    "color-px.dcm": "a group length before the pixel data",
    "ExplVR_BigEndNoMeta.dcm": "no preamble",
    "ExplVR_LitEndNoMeta.dcm": "no preamble",
    "OT-PAL-8-face.dcm": "no preamble",
    "rtstruct.dcm": "no preamble",
    "SC_rgb_jpeg.dcm": "implicit VR under a transfer syntax of explicit VR",
    "explicit_VR-UN.dcm": "SOPClassUID of VR UN",
    "rtdose_rle.dcm": "SOPClassUID of VR UN",
    "rtdose_rle_1frame.dcm": "SOPClassUID of VR UN",
}
ALWAYS_PARSED = {
    "image_dfl.dcm": "deflated: no digit of its UID can be changed in place",
    "waveform_ecg.dcm": "a header of 291,088 bytes is not kept as a template",
}

REASONS = {
    "row",
    "other file-not-dicom",
    "unreadable file-empty",
    "unreadable header-truncated",
    "unreadable required-uid-missing",
    "unreadable header-unreadable",
}


def differences(paths: list[Path], reader: FastReader) -> list[str]:
    """The names of the files for which the readers give different results."""
    differing = []
    for path in paths:
        content = path.read_bytes()
        if read_fast(reader, content, path.name) != read_with_reference(content, path.name):
            differing.append(path.name)
    return differing


def list_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def packaged() -> list[Path]:
    """The test files of pydicom, those of its wheel and those of the package `pydicom-data`."""
    paths = [*pydicom_files(), *pydicom_data_files()]
    assert len(paths) == 176 + 68
    return paths


def test_each_packaged_file_is_read_correctly_by_a_new_reader() -> None:
    assert [path.name for path in packaged() if differences([path], FastReader())] == []


def test_all_packaged_files_are_read_correctly_by_one_reader() -> None:
    reader = FastReader()
    assert differences(packaged(), reader) == []
    assert sum(reader.counts) == 244


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_series_of_each_packaged_file_is_read_correctly() -> None:
    files, differing = 0, list[str]()
    unsupported, parsed = set[str](), set[str]()
    for path in packaged():
        content = path.read_bytes()
        if not isinstance(read_with_reference(content, path.name), RowContent):
            continue
        files += 1
        reader = FastReader()
        for copy in siblings(content):
            if read_fast(reader, copy, path.name) != read_with_reference(copy, path.name):
                differing.append(path.name)
        if reader.counts == ReadCounts(matched=0, parsed=0, unsupported=3):
            unsupported.add(path.name)
        elif reader.counts == ReadCounts(matched=0, parsed=3, unsupported=0):
            parsed.add(path.name)
        else:
            assert reader.counts == ReadCounts(matched=1, parsed=2, unsupported=0), path.name
    assert differing == []
    assert files == 151 + 68
    assert unsupported == UNSUPPORTED.keys()
    assert parsed == ALWAYS_PARSED.keys()


@pytest.mark.parametrize("shuffled", [False, True], ids=["in order", "shuffled"])
@pytest.mark.parametrize("write", [write_realistic, write_adverse], ids=["realistic", "adverse"])
def test_generated_files_are_read_correctly(write, shuffled, tmp_path):
    write(tmp_path, 600)
    paths = list_files(tmp_path)
    if shuffled:
        random.Random(1).shuffle(paths)
    assert len(paths) == 600
    assert differences(paths, FastReader()) == []


def test_most_files_of_a_series_are_matched(tmp_path):
    write_realistic(tmp_path, 2000)
    reader = FastReader()
    for path in list_files(tmp_path):
        read_fast(reader, path.read_bytes(), path.name)
    assert sum(reader.counts) == 2000
    assert reader.counts.matched > 1700
    assert reader.counts.unsupported < 60


def test_one_file_series_of_several_scanners_are_nearly_all_matched() -> None:
    reader, differing = FastReader(), list[int]()
    for number, content in enumerate(one_file_series(1000)):
        if read_fast(reader, content) != read_with_reference(content):
            differing.append(number)
    assert differing == []
    # ten pairs of scanner and character set, and as many again where an element is absent
    assert reader.counts.matched > 940
    assert reader.counts.unsupported == 0


def test_damaged_files_are_read_correctly_in_bounded_time_and_memory(tmp_path: Path) -> None:
    script = [sys.executable, "-m", "tests.headers.fuzzing", str(tmp_path), "1", "2000"]
    # the script ends itself if a hundred files take 30 s; this timeout is for the case that it cannot
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    batches = [json.loads(line) for line in done.stdout.splitlines()]
    assert [difference for batch in batches for difference in batch["differences"]] == []
    outcomes_by_damage: dict[str, Counter[str]] = {}
    for batch in batches:
        assert sum(sum(counts.values()) for counts in batch["outcomes"].values()) == 100
        assert sum(batch["counts"].values()) == 100 + batch["good"]
        for kind, counts in batch["outcomes"].items():
            outcomes_by_damage.setdefault(kind, Counter()).update(counts)
    assert len(batches) == 20
    assert outcomes_by_damage.keys() == {
        "bytes flipped",
        "cut",
        "length forged",
        "length of 4 GB",
        "nested 200 deep",
        "element altered",
        "several",
    }
    for kind, outcomes in outcomes_by_damage.items():
        assert outcomes.total() in (285, 286), kind  # 2000 / 7
        assert outcomes.keys() <= REASONS, kind
        assert 0 < outcomes["row"] < outcomes.total(), kind
    for way in ("matched", "parsed", "unsupported"):
        assert sum(batch["counts"][way] for batch in batches) > 500, way


def test_a_large_last_value_that_is_truncated_gives_no_row() -> None:
    report = sequence("ContentSequence", item(element("TextValue", b"x" * 9000)))
    first, second, third = siblings(instance(report, sop_class=TEXT_SR))
    reader = FastReader()
    for content in (first, second):
        assert read_fast(reader, content) == read_with_reference(content)
    for missing in (1, 100, 8999):
        assert read_fast(reader, third[:-missing]) == NoRow("unreadable", "header-truncated")
    assert read_fast(reader, third) == read_with_reference(third)
    assert reader.counts.matched == 1


def test_file_meta_before_a_big_endian_data_set_is_little_endian() -> None:
    content = instance(syntax=BIG_ENDIAN).replace(b"\x02\0\x03\0UI\x06\x001.2.3\0", b"\x02\0\x03\0US\x06\0\1\0\2\0\3\0")
    row = read_fast(FastReader(), content)
    assert row == read_with_reference(content)
    assert isinstance(row, RowContent)
    assert r"'1\\2\\3'" in row.values
