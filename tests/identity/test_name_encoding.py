"""Names in paths: one plain segment for any name, and different segments for different names."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_etl.identity.name_encoding import encode_name

# Names of a file system may have bytes that are not UTF-8, which Python decodes to lone surrogates. Code points, since
# `st.characters` spends seconds on its tables when it runs for the first time.
CODE_POINT = st.one_of(
    st.integers(0, 0x7F), st.integers(0x80, 0xD7FF), st.integers(0xE000, 0x10FFFF), st.integers(0xDC80, 0xDCFF)
)
SEGMENT = re.compile(r"[A-Za-z0-9_%-][A-Za-z0-9_.%-]*")


@pytest.mark.parametrize("name", ["sub-1", "breast", "1.2.840.10008", "A_b-c.d", "_x", "-x", "console", "com10"])
def test_a_plain_name_is_unchanged(name: str) -> None:
    assert encode_name(name) == name


@pytest.mark.parametrize(
    ("name", "encoded"),
    [
        ("my data", "my%20data"),
        ("a/b", "a%2Fb"),
        ("a\\b", "a%5Cb"),
        ("100%", "100%25"),
        ("Müller", "M%C3%BCller"),
        ("a:b", "a%3Ab"),
        ("line\nbreak", "line%0Abreak"),
    ],
)
def test_other_characters_are_percent_encoded(name: str, encoded: str) -> None:
    assert encode_name(name) == encoded


@pytest.mark.parametrize(("name", "encoded"), [(".", "%2E"), ("..", "%2E."), (".hidden", "%2Ehidden")])
def test_a_leading_dot_is_encoded(name: str, encoded: str) -> None:
    assert encode_name(name) == encoded


@pytest.mark.parametrize(
    ("name", "encoded"), [("con", "%63on"), ("NUL", "%4EUL"), ("com1", "%63om1"), ("aux.dcm", "%61ux.dcm")]
)
def test_names_that_windows_reserves_are_encoded(name: str, encoded: str) -> None:
    assert encode_name(name) == encoded


@pytest.mark.parametrize(
    ("name", "encoded"),
    [
        ("x.parquet", "x%2Eparquet"),
        ("a.b.PARQUET", "a.b%2EPARQUET"),
        ("x.ndjson", "x%2Endjson"),
        ("x.lock", "x%2Elock"),
        ("Mü.json", "M%C3%BC%2Ejson"),
    ],
)
def test_suffixes_of_the_lakes_files_are_encoded(name: str, encoded: str) -> None:
    assert encode_name(name) == encoded


def test_normal_forms_of_a_character_stay_distinct() -> None:
    assert encode_name("u\u0308") == "u%CC%88"
    assert encode_name("\u00fc") == "%C3%BC"


def test_a_name_that_is_not_utf_8_keeps_its_bytes() -> None:
    assert encode_name("caf\udce9") == "caf%E9"


def test_a_long_name_ends_in_its_sha_256() -> None:
    # printf 'a%.0s' {1..300} | sha256sum
    assert encode_name("a" * 300) == "a" * 140 + "%-9835fa6bf4e20a9b9ea812506302e989"


def test_long_names_with_the_same_beginning_stay_distinct() -> None:
    assert encode_name("ü" * 100 + "1") != encode_name("ü" * 100 + "2")


def test_an_empty_name_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a name"):
        encode_name("")


@settings(deadline=None)
@given(st.lists(CODE_POINT, min_size=1, max_size=400))
def test_any_name_is_one_segment_of_at_most_180_characters(code_points: list[int]) -> None:
    encoded = encode_name("".join(map(chr, code_points)))
    assert SEGMENT.fullmatch(encoded)
    assert len(encoded) <= 180


@settings(deadline=None)
@given(*[st.text(st.sampled_from("aA.%25-/ ü"), min_size=1, max_size=6)] * 2)
def test_different_names_have_different_encodings(name: str, other: str) -> None:
    assert (encode_name(name) == encode_name(other)) is (name == other)
