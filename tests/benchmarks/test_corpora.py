"""The corpora of the benchmarks: always the same, valid, and as varied as their descriptions claim."""

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


def mean_element_count(corpus: Read) -> float:
    """Mean number of elements of the data sets, pixel data included."""
    return sum(len(dataset) for _, dataset in corpus) / len(corpus)


def sequence_lengths(corpus: Read) -> Counter[str]:
    """The numbers of top-level sequences with undefined length, with a length, and without items."""
    counts = Counter[str]()
    for _, dataset in corpus:
        tags = [tag for tag in set(dataset.keys()) if dictionary_has_tag(tag) and dictionary_VR(tag) == "SQ"]
        for sequence in (dataset[tag] for tag in tags):
            counts["undefined" if sequence.is_undefined_length else "defined"] += 1
            counts["empty"] += not sequence.value
            counts["undefined items"] += any(item.is_undefined_length_sequence_item for item in sequence.value)
    return counts


def group_by_series(corpus: Read) -> Iterator[list[FileDataset]]:
    members: dict[str, list[FileDataset]] = {}
    for _, dataset in corpus:
        members.setdefault(dataset.SeriesInstanceUID, []).append(dataset)
    return iter(members.values())


class TestBothCorpora:
    @pytest.mark.parametrize("write", [write_realistic, write_adverse])
    def test_a_corpus_is_always_the_same(self, write: Write, tmp_path: Path) -> None:
        first, second = (write(tmp_path / name, FILES, 7) for name in ("a", "b"))
        assert first == second
        assert [p.relative_to(tmp_path / "a") for p in paths(tmp_path / "a")] == [
            p.relative_to(tmp_path / "b") for p in paths(tmp_path / "b")
        ]
        for file, other in zip(paths(tmp_path / "a"), paths(tmp_path / "b"), strict=True):
            assert file.read_bytes() == other.read_bytes()
            assert file.stat().st_mtime_ns == other.stat().st_mtime_ns

    @pytest.mark.parametrize("write", [write_realistic, write_adverse])
    def test_another_seed_gives_another_corpus(self, write: Write, tmp_path: Path) -> None:
        write(tmp_path / "a", 40, 1)
        write(tmp_path / "b", 40, 2)
        contents = [{path.read_bytes() for path in paths(tmp_path / name)} for name in ("a", "b")]
        assert not contents[0] & contents[1]

    @pytest.mark.parametrize("write", [write_realistic, write_adverse])
    def test_all_files_are_readable_and_counted(self, write: Write, tmp_path: Path) -> None:
        corpus = write(tmp_path, FILES, 3)
        files = read(tmp_path)
        assert corpus.files == len(files) == FILES
        assert corpus.size == sum(path.stat().st_size for path, _ in files)
        assert corpus.series == len({dataset.SeriesInstanceUID for _, dataset in files})
        assert len({dataset.SOPInstanceUID for _, dataset in files}) == FILES

    @pytest.mark.parametrize("write", [write_realistic, write_adverse])
    def test_a_corpus_is_a_dataset_tree(self, write: Write, tmp_path: Path) -> None:
        write(tmp_path, FILES, 1)
        scan = Scan()
        entries = list(TreeSource("ds", tmp_path).scan(scan))
        assert scan.findings == []
        assert len(entries) == FILES
        assert all(entry.subject and entry.sample for entry in entries)
        assert len({entry.subject for entry in entries}) >= 2


class TestRealistic:
    def test_it_has_many_modalities_and_vendors(self, realistic: Read) -> None:
        assert set(count(realistic, lambda d: d.Modality)) == set("CT MR PT US CR DX MG NM SR".split())
        assert len(count(realistic, lambda d: d.Manufacturer)) >= 8

    def test_it_has_many_encodings(self, realistic: Read) -> None:
        syntaxes = count(realistic, lambda d: d.file_meta.TransferSyntaxUID.name)
        # explicit, implicit, deflated, big endian, RLE, JPEG, JPEG lossless, JPEG 2000
        assert len(syntaxes) == 8
        assert syntaxes[ExplicitVRLittleEndian.name] > FILES / 3

    def test_it_has_many_character_sets(self, realistic: Read) -> None:
        names = {str(dataset.PatientName) for _, dataset in realistic}
        assert {"Müßig^Jörg", "Yamada^Tarou=山田^太郎=やまだ^たろう", "Παπαδοπούλου^Ελένη"} <= names
        assert any("SpecificCharacterSet" not in dataset for _, dataset in realistic)

    def test_large_private_headers_differ_from_file_to_file(self, realistic: Read) -> None:
        siemens = [d for _, d in realistic if d.Modality == "MR" and d.Manufacturer == "SIEMENS"]
        image, whole = ([d[tag].value for d in siemens if tag in d] for tag in (0x00291010, 0x00291020))
        assert len(siemens) / 4 < len(image) < len(siemens) * 3 / 4
        assert len(set(image)) == len(set(whole)) == len(image)
        assert {len(value) for value in image} != {len(image[0])}
        assert 40_000 < min(map(len, whole)) < max(map(len, whole)) < 100_000

    def test_private_elements_have_many_creators(self, realistic: Read) -> None:
        creators = {
            str(element.value) for _, dataset in realistic for element in dataset if element.tag.is_private_creator
        }
        assert len(creators) >= 12

    def test_sequences_have_defined_and_undefined_lengths(self, realistic: Read) -> None:
        lengths = sequence_lengths(realistic)
        assert lengths["defined"] > FILES
        assert lengths["undefined"] > FILES
        assert lengths["undefined items"] > FILES
        for keyword in ("AnatomicRegionSequence", "RequestAttributesSequence", "SharedFunctionalGroupsSequence"):
            assert any(keyword in dataset for _, dataset in realistic)

    def test_headers_have_the_usual_size(self, realistic: Read) -> None:
        assert 100 < mean_element_count(realistic) < 135

    def test_files_of_a_series_differ_in_few_elements(self, realistic: Read) -> None:
        counts = []
        for members in group_by_series(realistic):
            for instance, other in pairwise(members):
                differing = {e.tag for e in instance if e.tag not in other or other[e.tag].value != e.value}
                counts.append(len(differing - {0x7FE00010}))
        assert 5 < sum(counts) / len(counts) < 20

    def test_a_large_corpus_has_few_long_and_many_short_series(self, tmp_path: Path) -> None:
        corpus = write_realistic(tmp_path, 2000, 1)
        sizes = sorted(len(list(folder.iterdir())) for folder in tmp_path.glob("primary/*/*"))
        assert corpus.series < 60
        assert sizes[-1] > 100
        assert sizes[0] < 5


class TestAdverse:
    def test_consecutive_files_are_of_different_series(self, adverse: Read) -> None:
        same = sum(
            instance.SeriesInstanceUID == other.SeriesInstanceUID
            for (path, instance), (next_path, other) in pairwise(adverse)
            if path.parent == next_path.parent
        )
        assert same < FILES / 2

    def test_files_of_a_series_differ_in_tag_profile_and_encoding(self, adverse: Read) -> None:
        tag_profiles = [{tuple(dataset.keys()) for dataset in members} for members in group_by_series(adverse)]
        assert sum(map(len, tag_profiles)) == FILES
        assert all(len({d.file_meta.TransferSyntaxUID for d in members}) > 1 for members in group_by_series(adverse))

    def test_it_has_every_encoding_and_character_set(self, adverse: Read) -> None:
        assert len(count(adverse, lambda d: d.file_meta.TransferSyntaxUID)) == 7
        assert len(count(adverse, lambda d: str(d.get("SpecificCharacterSet")))) >= 7

    def test_it_has_unusual_sequences_and_values(self, adverse: Read) -> None:
        lengths = sequence_lengths(adverse)
        assert min(lengths[kind] for kind in ("defined", "undefined", "empty", "undefined items")) > FILES / 10
        stored = (element for _, dataset in adverse for element in dataset._dict.values())  # not yet converted
        raw = [element for element in stored if isinstance(element.value, bytes)]
        assert sum(element.value == b"" for element in raw) > FILES
        assert sum(element.value.strip(b"\0 ") == b"" and len(element.value) > 0 for element in raw) > FILES / 2
        assert sum(element.VR == "UN" for element in raw) > FILES / 2
        # sequences whose VR was lost (PS3.5 6.2.2, note): their items are in implicit VR
        assert any(b"UN\0\0\xff\xff\xff\xff\xfe\xff\0\xe0" in path.read_bytes() for path, _ in adverse)
        assert sum(element.value.endswith(b"\0\0\0") for element in raw) > 10

    def test_some_files_have_no_pixel_data_and_some_have_padding(self, adverse: Read) -> None:
        without = sum("PixelData" not in dataset for _, dataset in adverse)
        assert 0 < without < FILES / 5
        assert any(0xFFFCFFFC in dataset for _, dataset in adverse)


class TestDamage:
    def test_damage_is_reproducible_and_changes_nearly_every_file(self, realistic: Read) -> None:
        originals = [path.read_bytes() for path, _ in realistic]
        first, second = ([damaged(rng, data) for data in originals] for rng in (random.Random(5), random.Random(5)))
        assert first == second
        assert sum(original == damaged_ for original, damaged_ in zip(originals, first, strict=True)) < FILES / 20

    def test_there_are_many_kinds_of_damage(self, realistic: Read) -> None:
        original, rng = realistic[0][0].read_bytes(), random.Random(5)
        variants = [damaged(rng, original) for _ in range(300)]
        deep = b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff"
        assert sum(len(data) < len(original) for data in variants) > 20
        assert sum(len(data) == len(original) for data in variants) > 50
        assert sum(data.count(deep) >= 200 for data in variants) > 10

    @pytest.mark.parametrize("data", [b"", b"\0", bytes(140)])
    def test_any_bytes_can_be_damaged(self, data: bytes) -> None:
        rng = random.Random(1)
        for _ in range(200):
            assert isinstance(damaged(rng, data), bytes)
