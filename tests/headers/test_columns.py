"""Rows become columns: shared values are repeated, others stay in their rows."""

from __future__ import annotations

from typing import Any

from dicom_etl.headers.catalogue import catalogue
from dicom_etl.headers.columns import HeaderColumns
from dicom_etl.headers.row import Row, SharedValues
from dicom_etl.headers.tag_profile import FILLED, TagProfile, element_code, pack_codes

NAMES = [column.name for column in catalogue()]
TAG_PROFILE = TagProfile(pack_codes([element_code(0x00100010, FILLED)]))


def base(varied: tuple[str, ...] = (), **values: Any) -> SharedValues:
    """Shared values, and columns that vary."""
    return SharedValues(
        tuple(values.get(name) for name in NAMES), tuple(NAMES.index(name) for name in varied), TAG_PROFILE
    )


def row(shared: SharedValues, *changed: Any) -> Row:
    """A row with shared values."""
    return Row(shared, changed, TAG_PROFILE, (), False, False)


def columns_of(*rows: Row) -> dict[str, list[Any]]:
    """The columns, in the order in which the rows were added."""
    header_columns = HeaderColumns()
    for number, row_ in enumerate(rows):
        header_columns.add(number, row_)
    numbers, tag_profiles, columns = header_columns.to_columns()
    assert tag_profiles.to_pylist() == [TAG_PROFILE.id] * len(rows)
    order = sorted(range(len(rows)), key=numbers.__getitem__)
    return {
        name: [values[place] for place in order]
        for name, values in zip(columns, map(list_of, columns.values()), strict=True)
    }


def list_of(column: Any) -> list[Any]:
    return column.to_pylist()


def test_without_rows_columns_are_empty() -> None:
    assert set(map(len, columns_of().values())) == {0}


def test_values_stay_in_their_rows() -> None:
    many = base(("SOPInstanceUID",), Modality="MR", SeriesNumber=1, SliceLocation=0.0)
    few = base(("SOPInstanceUID", "Modality"), SeriesNumber=1)
    alone = base(SOPInstanceUID="9", Modality="CT", SeriesNumber=2)
    rows = [row(alone), *(row(many, str(n)) for n in range(40)), row(few, "50", "SR"), row(alone)]
    columns = columns_of(*rows)
    assert columns["SOPInstanceUID"] == ["9", *map(str, range(40)), "50", "9"]
    assert columns["Modality"] == ["CT", *["MR"] * 40, "SR", "CT"]
    assert columns["SeriesNumber"] == [2, *[1] * 41, 2]
    assert columns["SliceLocation"] == [None, *[0.0] * 40, None, None]
    assert columns["PatientID"] == [None] * 43


def test_a_value_that_all_rows_share_is_in_all_rows() -> None:
    first, second = (base(("SOPInstanceUID",), PatientID="P-1") for _ in range(2))
    alone = base(SOPInstanceUID="9", PatientID="P-1")
    rows = [row(one, "1") for one in [first] * 40 + [second] * 40]
    assert columns_of(*rows, row(alone))["PatientID"] == ["P-1"] * 81


def test_a_row_without_the_value_of_all_others_stays_null() -> None:
    rows = [row(base(("SOPInstanceUID",), PatientID="P-1"), "1")] * 40
    assert columns_of(*rows, row(base(SOPInstanceUID="9")))["PatientID"] == [*["P-1"] * 40, None]


def test_positive_and_negative_zero_stay_different() -> None:
    plus, minus = (base(("SOPInstanceUID",), SliceLocation=number) for number in (0.0, -0.0))
    rows = [row(one, "1") for one in [plus] * 40 + [minus] * 40]
    assert list(map(str, columns_of(*rows)["SliceLocation"])) == ["0.0"] * 40 + ["-0.0"] * 40


def test_rows_may_be_added_after_columns_were_made() -> None:
    many = base(("SOPInstanceUID",), Modality="MR")
    header_columns = HeaderColumns()
    for number in range(80):
        header_columns.add(number, row(many, str(number)))
        if number == 39:
            assert header_columns.to_columns().columns["SOPInstanceUID"].to_pylist() == [str(n) for n in range(40)]
    assert header_columns.to_columns().columns["SOPInstanceUID"].to_pylist() == [str(n) for n in range(80)]
