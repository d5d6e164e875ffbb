"""Fingerprints: equal for equal inputs, different for different ones."""

import datetime
import hashlib
from typing import Any

import pyarrow as pa
import pytest

from dicom_etl.lake.fingerprints import compute_fingerprint, hash_package_files, hash_runs


def test_a_fingerprint_is_the_sha_256_of_json() -> None:
    assert compute_fingerprint("a", 1, None) == hashlib.sha256(b'["a",1,null]').hexdigest()[:32]


def test_the_order_of_the_keys_of_a_mapping_does_not_matter() -> None:
    assert compute_fingerprint({"a": 1, "b": {"c": 2, "d": 3}}) == compute_fingerprint({"b": {"d": 3, "c": 2}, "a": 1})


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("a", "b"), ("ab",)),
        (("a", None), ("a",)),
        ((["a"], "b"), (["a", "b"],)),
        ((1,), ("1",)),
        ((None,), ("",)),
        ((True,), (1,)),
        ((["a", "b"],), (["b", "a"],)),
    ],
)
def test_different_inputs_have_different_fingerprints(first: tuple[Any, ...], second: tuple[Any, ...]) -> None:
    assert compute_fingerprint(*first) != compute_fingerprint(*second)


def test_the_digest_of_package_files_is_of_their_content() -> None:
    first = hash_package_files("dicom_etl.headers:catalogue.csv")
    both = hash_package_files("dicom_etl.headers:catalogue.csv", "dicom_etl:finding_codes.csv")
    assert len(first) == len(both) == 16
    assert first != both


def test_a_missing_package_file_has_no_digest() -> None:
    with pytest.raises(FileNotFoundError):
        hash_package_files("dicom_etl:none.csv")


NOON = datetime.datetime(2024, 5, 1, 12, tzinfo=datetime.UTC)


def table(*rows: tuple[Any, ...]) -> pa.Table:
    """Rows of a text, a number and an instant."""
    columns = list(zip(*rows, strict=True)) or [(), (), ()]
    types = (pa.string(), pa.int64(), pa.timestamp("us", tz="UTC"))
    return pa.table({name: pa.array(c, t) for name, c, t in zip("abc", columns, types, strict=True)})


def digests(rows: pa.Table, *ends: int) -> list[str]:
    return list(hash_runs(rows, ends))


class TestHashRuns:
    def test_each_run_of_rows_has_a_digest_of_32_hex_digits(self) -> None:
        digests_of_runs = digests(table(("x", 1, NOON), ("y", 2, None), ("z", 3, NOON)), 1, 3)
        assert [len(digest) for digest in digests_of_runs] == [32, 32]
        assert len(set(digests_of_runs)) == 2
        assert all(set(digest) <= set("0123456789abcdef") for digest in digests_of_runs)

    def test_the_digest_of_a_run_is_that_of_its_text(self) -> None:
        # text, number and microseconds since 1970, each followed by a separator; a null is a character of its own
        text = b"x\x1f1\x1f1714564800000000\x1f" + b"\x1e\x1f\x1e\x1f\x1e\x1f"
        rows = table(("x", 1, NOON), (None, None, None))
        assert digests(rows, 2) == [hashlib.sha256(text).hexdigest()[:32]]

    def test_the_digest_does_not_depend_on_neighbouring_rows(self) -> None:
        run = [("x", 1, NOON), ("y", None, None)]
        alone = digests(table(*run), 2)
        assert digests(table(("a", 7, None), *run, ("b", 8, NOON)), 1, 3, 4)[1:2] == alone

    def test_the_digest_does_not_depend_on_the_chunks_of_the_table(self) -> None:
        rows = table(*((f"text {number}", number, NOON) for number in range(20)))
        ends = (3, 4, 11, 20)
        cut = pa.concat_tables([rows.slice(0, 1), rows.slice(1, 6), rows.slice(7, 0), rows.slice(7)])
        assert cut["a"].num_chunks > 1
        assert digests(cut, *ends) == digests(rows, *ends)
        assert digests(pa.concat_tables([rows, rows]).slice(20), *ends) == digests(rows, *ends)

    def test_the_digest_does_not_depend_on_blocks_of_100_000_rows(self) -> None:
        count = 250_003
        rows = pa.table({"a": pa.array([f"{number}" for number in range(count)]), "b": pa.array(range(count))})
        ends = [99_998, 99_999, 100_000, 100_001, 220_000, 250_000, 250_003]
        starts = [0, *ends[:-1]]
        digests_of_runs = digests(rows, *ends)
        text = "".join(f"{number}\x1f{number}\x1f" for number in range(100_001, 220_000))  # over both boundaries
        assert digests_of_runs[4] == hashlib.sha256(text.encode()).hexdigest()[:32]
        assert digests_of_runs == [
            digests(rows.slice(start, end - start), end - start)[0] for start, end in zip(starts, ends, strict=True)
        ]

    def test_a_null_is_not_an_empty_text(self) -> None:
        digests_of_runs = [digests(table((text, 1, NOON)), 1) for text in (None, "", "None", "\\N")]
        assert len({digest for (digest,) in digests_of_runs}) == 4

    @pytest.mark.parametrize(
        ("first", "second"),
        [
            ([("ab", "c")], [("a", "bc")]),
            ([("", "a")], [("a", "")]),
            ([(None, "a")], [("a", None)]),
            ([("a", "b"), ("c", "d")], [("a", "b"), ("cd", "")]),
            ([("a", "b"), ("c", "d")], [("c", "d"), ("a", "b")]),
            ([("a", "b")], [("a", "b"), ("a", "b")]),
        ],
    )
    def test_values_are_separated_from_their_neighbours(
        self, first: list[tuple[str, str]], second: list[tuple[str, str]]
    ) -> None:
        tables = [
            pa.table({"a": pa.array([r[0] for r in rows]), "b": pa.array([r[1] for r in rows])})
            for rows in (first, second)
        ]
        assert digests(tables[0], len(first)) != digests(tables[1], len(second))

    def test_runs_are_separated_from_their_neighbours(self) -> None:
        rows = table(*((text, 1, None) for text in "xxxx"))
        assert digests(rows, 1, 4)[0] == digests(rows, 1, 2, 4)[0]
        assert digests(rows, 1, 4)[1] != digests(rows, 2, 4)[1]

    def test_microseconds_of_a_time_matter(self) -> None:
        later = NOON + datetime.timedelta(microseconds=1)
        assert digests(table(("x", 1, NOON)), 1) != digests(table(("x", 1, later)), 1)

    def test_without_runs_there_are_no_digests(self) -> None:
        assert digests(table(), *()) == []
