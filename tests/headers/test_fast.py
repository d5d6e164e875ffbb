"""Two readers, one truth: what the fast reader says of a file is what pydicom's says."""

import random
from pathlib import Path

import pydicom
import pytest

from benchmarks.corpora import damaged, write_adverse, write_realistic
from dicom_etl.headers.fast import FastReader
from tests.headers.compare import Refused, decided, said

SHIPPED = Path(pydicom.__file__).parent / "data/test_files"


def differences(paths: list[Path], reader: FastReader) -> list[str]:
    """The files of which the readers say different things."""
    contents = ((path, path.read_bytes()) for path in paths)
    return [path.name for path, content in contents if said(reader, content, path.name) != decided(content, path.name)]


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_all_files_that_pydicom_ships_are_read_alike():
    paths = files_of(SHIPPED)
    assert len(paths) > 170
    assert differences(paths, FastReader()) == []


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
    assert sum(reader.work) == 2000
    assert reader.work.matched > 1700
    assert reader.work.handed_over < 60


@pytest.mark.parametrize("seed", range(4))
def test_damaged_files_among_good_ones_are_read_alike(seed, tmp_path):
    write_realistic(tmp_path, 250)
    rng, reader = random.Random(seed), FastReader()
    found: list[str] = []
    rows = 0
    for path in files_of(tmp_path):
        good = path.read_bytes()
        for content in (good, damaged(rng, good), damaged(rng, good)):
            fast, slow = said(reader, content, path.name), decided(content, path.name)
            rows += not isinstance(slow, Refused)
            if fast != slow:
                found.append(path.name)
    assert found == []
    assert rows > 300
