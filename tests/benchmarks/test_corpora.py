"""The corpora of the benchmarks: the same on any day, valid, and as various as they are said to be."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pydicom
import pytest
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataset import FileDataset
from pydicom.uid import ExplicitVRLittleEndian

from benchmarks.corpora import Corpus, damaged, write_adverse, write_realistic
from dicom_etl.sources import Scan, TreeSource

FILES = 200
Write = Callable[[Path, int, int], Corpus]
Read = list[tuple[Path, FileDataset]]


def paths(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def read(folder: Path) -> Read:
    return [(path, pydicom.dcmread(path)) for path in paths(folder)]


@pytest.fixture(scope="module")
def realistic(tmp_path_factory: pytest.TempPathFactory) -> Read:
    folder = tmp_path_factory.mktemp("realistic")
    write_realistic(folder, FILES, 1)
    return read(folder)


@pytest.fixture(scope="module")
def adverse(tmp_path_factory: pytest.TempPathFactory) -> Read:
    folder = tmp_path_factory.mktemp("adverse")
    write_adverse(folder, FILES, 1)
    return read(folder)


def count(corpus: Read, of: Callable[[FileDataset], object]) -> Counter[object]:
    return Counter(of(dataset) for _, dataset in corpus)


def top_level(corpus: Read) -> float:
    """Mean number of elements of the data sets, pixel data included."""
    return sum(len(dataset) for _, dataset in corpus) / len(corpus)


def sequence_lengths(corpus: Read) -> Counter[str]:
    """How often top-level sequences have an undefined length, a length, no item."""
    found = Counter[str]()
    for _, dataset in corpus:
        tags = [tag for tag in set(dataset.keys()) if dictionary_has_tag(tag) and dictionary_VR(tag) == "SQ"]
        for sequence in (dataset[tag] for tag in tags):
            found["undefined" if sequence.is_undefined_length else "defined"] += 1
            found["empty"] += not sequence.value
            found["undefined items"] += any(item.is_undefined_length_sequence_item for item in sequence.value)
    return found


def series(corpus: Read) -> Iterator[list[FileDataset]]:
    members: dict[str, list[FileDataset]] = {}
    for _, dataset in corpus:
        members.setdefault(dataset.SeriesInstanceUID, []).append(dataset)
    return iter(members.values())


# -- both -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [write_realistic, write_adverse])
def test_a_corpus_is_always_the_same(write: Write, tmp_path: Path) -> None:
    first, second = (write(tmp_path / name, FILES, 7) for name in ("a", "b"))
    assert first == second
    assert [p.relative_to(tmp_path / "a") for p in paths(tmp_path / "a")] == [
        p.relative_to(tmp_path / "b") for p in paths(tmp_path / "b")
    ]
    for one, other in zip(paths(tmp_path / "a"), paths(tmp_path / "b"), strict=True):
        assert one.read_bytes() == other.read_bytes()
        assert one.stat().st_mtime_ns == other.stat().st_mtime_ns


@pytest.mark.parametrize("write", [write_realistic, write_adverse])
def test_another_seed_gives_another_corpus(write: Write, tmp_path: Path) -> None:
    write(tmp_path / "a", 40, 1)
    write(tmp_path / "b", 40, 2)
    contents = [{path.read_bytes() for path in paths(tmp_path / name)} for name in ("a", "b")]
    assert not contents[0] & contents[1]


@pytest.mark.parametrize("write", [write_realistic, write_adverse])
def test_every_file_is_read_and_all_that_was_promised_is_there(write: Write, tmp_path: Path) -> None:
    corpus = write(tmp_path, FILES, 3)
    found = read(tmp_path)
    assert corpus.files == len(found) == FILES
    assert corpus.size == sum(path.stat().st_size for path, _ in found)
    assert corpus.series == len({dataset.SeriesInstanceUID for _, dataset in found})
    assert len({dataset.SOPInstanceUID for _, dataset in found}) == FILES


@pytest.mark.parametrize("write", [write_realistic, write_adverse])
def test_a_corpus_is_a_dataset_tree(write: Write, tmp_path: Path) -> None:
    write(tmp_path, FILES, 1)
    scan = Scan()
    entries = list(TreeSource("ds", tmp_path).scan(scan))
    assert scan.findings == []
    assert len(entries) == FILES
    assert all(entry.subject and entry.sample for entry in entries)
    assert len({entry.subject for entry in entries}) >= 2


# -- realistic --------------------------------------------------------------------------------------------------------


def test_realistic_has_many_modalities_and_vendors(realistic: Read) -> None:
    assert set(count(realistic, lambda d: d.Modality)) == set("CT MR PT US CR DX MG NM SR".split())
    assert len(count(realistic, lambda d: d.Manufacturer)) >= 8


def test_realistic_has_many_encodings(realistic: Read) -> None:
    syntaxes = count(realistic, lambda d: d.file_meta.TransferSyntaxUID.name)
    # explicit, implicit, deflated, big endian, RLE, JPEG, JPEG lossless, JPEG 2000
    assert len(syntaxes) == 8
    assert syntaxes[ExplicitVRLittleEndian.name] > FILES / 3


def test_realistic_has_many_character_sets(realistic: Read) -> None:
    names = {str(dataset.PatientName) for _, dataset in realistic}
    assert {"Müßig^Jörg", "Yamada^Tarou=山田^太郎=やまだ^たろう", "Παπαδοπούλου^Ελένη"} <= names
    assert any("SpecificCharacterSet" not in dataset for _, dataset in realistic)


def test_realistic_has_big_private_headers_that_differ_from_file_to_file(realistic: Read) -> None:
    siemens = [d for _, d in realistic if d.Modality == "MR" and d.Manufacturer == "SIEMENS"]
    image, whole = ([d[tag].value for d in siemens if tag in d] for tag in (0x00291010, 0x00291020))
    assert len(siemens) / 4 < len(image) < len(siemens) * 3 / 4
    assert len(set(image)) == len(set(whole)) == len(image)
    assert {len(value) for value in image} != {len(image[0])}
    assert 40_000 < min(map(len, whole)) < max(map(len, whole)) < 100_000


def test_realistic_has_private_elements_of_many_creators(realistic: Read) -> None:
    creators = {str(element.value) for _, dataset in realistic for element in dataset if element.tag.is_private_creator}
    assert len(creators) >= 12


def test_realistic_has_sequences_of_both_kinds(realistic: Read) -> None:
    lengths = sequence_lengths(realistic)
    assert lengths["defined"] > FILES
    assert lengths["undefined"] > FILES
    assert lengths["undefined items"] > FILES
    for keyword in ("AnatomicRegionSequence", "RequestAttributesSequence", "SharedFunctionalGroupsSequence"):
        assert any(keyword in dataset for _, dataset in realistic)


def test_realistic_has_headers_of_the_usual_size(realistic: Read) -> None:
    assert 100 < top_level(realistic) < 135


def test_realistic_files_of_a_series_differ_in_few_elements(realistic: Read) -> None:
    changed = []
    for members in series(realistic):
        for one, other in pairwise(members):
            differing = {e.tag for e in one if e.tag not in other or other[e.tag].value != e.value}
            changed.append(len(differing - {0x7FE00010}))
    assert 5 < sum(changed) / len(changed) < 20


def test_realistic_has_few_long_series_and_many_short_ones_when_it_is_full(tmp_path: Path) -> None:
    corpus = write_realistic(tmp_path, 2000, 1)
    sizes = sorted(len(list(folder.iterdir())) for folder in tmp_path.glob("primary/*/*"))
    assert corpus.series < 60
    assert sizes[-1] > 100
    assert sizes[0] < 5


# -- adverse ----------------------------------------------------------------------------------------------------------


def test_adverse_neighbours_by_name_belong_to_different_series(adverse: Read) -> None:
    same = sum(
        one.SeriesInstanceUID == other.SeriesInstanceUID
        for (path, one), (next_path, other) in pairwise(adverse)
        if path.parent == next_path.parent
    )
    assert same < FILES / 2


def test_adverse_files_of_a_series_share_neither_layout_nor_encoding(adverse: Read) -> None:
    tag_profiles = [{tuple(dataset.keys()) for dataset in members} for members in series(adverse)]
    assert sum(map(len, tag_profiles)) == FILES
    assert all(len({d.file_meta.TransferSyntaxUID for d in members}) > 1 for members in series(adverse))


def test_adverse_has_every_encoding_and_character_set(adverse: Read) -> None:
    assert len(count(adverse, lambda d: d.file_meta.TransferSyntaxUID)) == 7
    assert len(count(adverse, lambda d: str(d.get("SpecificCharacterSet")))) >= 7


def test_adverse_has_odd_sequences_and_values(adverse: Read) -> None:
    lengths = sequence_lengths(adverse)
    assert min(lengths[kind] for kind in ("defined", "undefined", "empty", "undefined items")) > FILES / 10
    raw = [element for _, dataset in adverse for element in dataset._dict.values() if isinstance(element.value, bytes)]
    assert sum(element.value == b"" for element in raw) > FILES
    assert sum(element.value.strip(b"\0 ") == b"" and len(element.value) > 0 for element in raw) > FILES / 2
    assert sum(element.VR == "UN" for element in raw) > FILES / 2
    # sequences whose VR was lost (PS3.5 6.2.2, note): their items are in implicit VR
    assert any(b"UN\0\0\xff\xff\xff\xff\xfe\xff\0\xe0" in path.read_bytes() for path, _ in adverse)
    assert sum(element.value.endswith(b"\0\0\0") for element in raw) > 10


def test_adverse_has_files_without_pixel_data_and_with_padding_after_it(adverse: Read) -> None:
    without = sum("PixelData" not in dataset for _, dataset in adverse)
    assert 0 < without < FILES / 5
    assert any(0xFFFCFFFC in dataset for _, dataset in adverse)


# -- damage -----------------------------------------------------------------------------------------------------------


def test_damage_is_always_the_same_and_changes_nearly_every_file(realistic: Read) -> None:
    whole = [path.read_bytes() for path, _ in realistic]
    first, second = ([damaged(rng, data) for data in whole] for rng in (random.Random(5), random.Random(5)))
    assert first == second
    assert sum(one == other for one, other in zip(whole, first, strict=True)) < FILES / 20


def test_damage_is_of_many_kinds(realistic: Read) -> None:
    whole, rng = realistic[0][0].read_bytes(), random.Random(5)
    changed = [damaged(rng, whole) for _ in range(300)]
    deep = b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff"
    assert sum(len(data) < len(whole) for data in changed) > 20
    assert sum(len(data) == len(whole) for data in changed) > 50
    assert sum(data.count(deep) >= 200 for data in changed) > 10


@pytest.mark.parametrize("data", [b"", b"\0", bytes(140)])
def test_damage_takes_any_bytes(data: bytes) -> None:
    rng = random.Random(1)
    for _ in range(200):
        assert isinstance(damaged(rng, data), bytes)
