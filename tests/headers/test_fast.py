"""Two readers, one truth: what the fast reader says of a file is what pydicom's says."""

import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.corpora import write_adverse, write_realistic
from dicom_etl.headers.fast import FastReader, ReadCounts
from tests.headers.compare import Refused, Said, decided, downloaded, said
from tests.headers.files import BIG_ENDIAN, TEXT_SR, element, instance, item, sequence, shipped, siblings
from tests.headers.one_file_series import one_file_series

ROOT = Path(__file__).parents[2]

# Files that give a row, but never by a template. They are compared like all others.
UNSUPPORTED = {  # to pydicom
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
    "waveform_ecg.dcm": "a header of 291,088 bytes is not kept",
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
    """The files of which the readers say different things."""
    contents = ((path, path.read_bytes()) for path in paths)
    return [path.name for path, content in contents if said(reader, content, path.name) != decided(content, path.name)]


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def packaged() -> list[Path]:
    """The test files of pydicom, those of its wheel and those of the package `pydicom-data`."""
    paths = [*shipped(), *downloaded()]
    assert len(paths) == 176 + 68
    return paths


def test_each_packaged_file_is_read_alike_alone() -> None:
    assert [path.name for path in packaged() if differences([path], FastReader())] == []


def test_all_packaged_files_are_read_alike_after_one_another() -> None:
    reader = FastReader()
    assert differences(packaged(), reader) == []
    assert sum(reader.counts) == 244


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_each_packaged_file_that_gives_a_row_is_read_alike_as_a_series() -> None:
    files, differing = 0, list[str]()
    unsupported, parsed = set[str](), set[str]()
    for path in packaged():
        content = path.read_bytes()
        if not isinstance(decided(content, path.name), Said):
            continue
        files += 1
        reader = FastReader()
        for copy in siblings(content):
            if said(reader, copy, path.name) != decided(copy, path.name):
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
def test_generated_files_are_read_alike(write, shuffled, tmp_path):
    write(tmp_path, 600)
    paths = files_of(tmp_path)
    if shuffled:
        random.Random(1).shuffle(paths)
    assert len(paths) == 600
    assert differences(paths, FastReader()) == []


def test_most_files_of_a_series_are_read_as_differences_from_its_first(tmp_path):
    write_realistic(tmp_path, 2000)
    reader = FastReader()
    for path in files_of(tmp_path):
        said(reader, path.read_bytes(), path.name)
    assert sum(reader.counts) == 2000
    assert reader.counts.matched > 1700
    assert reader.counts.unsupported < 60


def test_one_file_series_of_several_scanners_are_read_alike_and_nearly_all_as_differences() -> None:
    reader, differing = FastReader(), list[int]()
    for number, content in enumerate(one_file_series(1000)):
        if said(reader, content) != decided(content):
            differing.append(number)
    assert differing == []
    # ten pairs of scanner and character set, and as many again where an element is absent
    assert reader.counts.matched > 940
    assert reader.counts.unsupported == 0


def test_two_thousand_damaged_files_among_good_ones_are_read_alike_in_bounded_time_and_memory(tmp_path: Path) -> None:
    script = [sys.executable, "-m", "tests.headers.fuzzing", str(tmp_path), "1", "2000"]
    # the script ends itself when a hundred files take 30 s; this is for the case that it cannot
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    batches = [json.loads(line) for line in done.stdout.splitlines()]
    assert [difference for batch in batches for difference in batch["differences"]] == []
    found: dict[str, Counter[str]] = {}
    for batch in batches:
        assert sum(sum(counts.values()) for counts in batch["outcomes"].values()) == 100
        assert sum(batch["counts"].values()) == 100 + batch["good"]
        for kind, counts in batch["outcomes"].items():
            found.setdefault(kind, Counter()).update(counts)
    assert len(batches) == 20
    assert found.keys() == {
        "bytes flipped",
        "cut",
        "length forged",
        "length of 4 GB",
        "nested 200 deep",
        "element altered",
        "several",
    }
    for kind, outcomes in found.items():
        assert outcomes.total() in (285, 286), kind  # 2000 / 7
        assert outcomes.keys() <= REASONS, kind
        assert 0 < outcomes["row"] < outcomes.total(), kind
    for way in ("matched", "parsed", "unsupported"):
        assert sum(batch["counts"][way] for batch in batches) > 500, way


def test_a_large_value_at_the_end_that_is_cut_gives_no_row_after_files_like_it() -> None:
    report = sequence("ContentSequence", item(element("TextValue", b"x" * 9000)))
    first, second, third = siblings(instance(report, sop_class=TEXT_SR))
    reader = FastReader()
    for content in (first, second):
        assert said(reader, content) == decided(content)
    for missing in (1, 100, 8999):
        assert said(reader, third[:-missing]) == Refused("unreadable", "header-truncated")
    assert said(reader, third) == decided(third)
    assert reader.counts.matched == 1


def test_binary_numbers_in_the_file_meta_information_are_little_endian_before_a_big_endian_data_set() -> None:
    content = instance(syntax=BIG_ENDIAN).replace(b"\x02\0\x03\0UI\x06\x001.2.3\0", b"\x02\0\x03\0US\x06\0\1\0\2\0\3\0")
    found = said(FastReader(), content)
    assert found == decided(content)
    assert isinstance(found, Said)
    assert r"'1\\2\\3'" in found.values
