"""Fingerprints: equal for equal inputs, and for nothing else."""

import hashlib
from typing import Any

import pytest

from dicom_etl.lake.fingerprints import fingerprint, version_of


def test_a_fingerprint_is_the_beginning_of_the_sha_256_of_the_json() -> None:
    assert fingerprint("a", 1, None) == hashlib.sha256(b'["a",1,null]').hexdigest()[:32]


def test_the_keys_of_a_mapping_come_in_any_order() -> None:
    assert fingerprint({"a": 1, "b": {"c": 2, "d": 3}}) == fingerprint({"b": {"d": 3, "c": 2}, "a": 1})


@pytest.mark.parametrize(
    ("one", "other"),
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
def test_other_inputs_have_another_fingerprint(one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    assert fingerprint(*one) != fingerprint(*other)


def test_the_version_of_tables_is_of_their_content() -> None:
    one = version_of("dicom_etl.headers:catalogue.csv")
    two = version_of("dicom_etl.headers:catalogue.csv", "dicom_etl:codes.csv")
    assert len(one) == len(two) == 16
    assert one != two


def test_a_table_that_is_not_there_has_no_version() -> None:
    with pytest.raises(FileNotFoundError):
        version_of("dicom_etl:none.csv")
