"""DICOM dates, times and offsets as FHIR dateTime (R4 2.24.0.6): a date, or an instant with seconds and a zone."""

import datetime
import re
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_etl.fhir.datetimes import convert_date_time, convert_dt, parse_offset, to_instant

DAY = datetime.date(2024, 1, 5)
BERLIN = ZoneInfo("Europe/Berlin")
# the regular expression of dateTime in R4, copied from hl7.org/fhir/R4/datatypes.html
FHIR_DATE_TIME = re.compile(
    r"([0-9]([0-9]([0-9][1-9]|[1-9]0)|[1-9]00)|[1-9]000)(-(0[1-9]|1[0-2])(-(0[1-9]|[1-2][0-9]|3[0-1])"
    r"(T([01][0-9]|2[0-3]):[0-5][0-9]:([0-5][0-9]|60)(\.[0-9]+)?(Z|(\+|-)((0[0-9]|1[0-3]):[0-5][0-9]|14:00)))?)?)?"
)


def test_without_a_date_there_is_no_value() -> None:
    assert convert_date_time(None, "101500", "+0100", BERLIN) == (None, None)


@pytest.mark.parametrize("time", [None, ""])
def test_a_date_without_a_time(time: str | None) -> None:
    assert convert_date_time(DAY, time, "+0100", BERLIN) == ("2024-01-05", None)


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        ("+0100", "2024-01-05T10:15:30+01:00"),
        ("-0500", "2024-01-05T10:15:30-05:00"),
        ("+0000", "2024-01-05T10:15:30+00:00"),
        ("+0545", "2024-01-05T10:15:30+05:45"),
        ("+1400", "2024-01-05T10:15:30+14:00"),
        ("-1200", "2024-01-05T10:15:30-12:00"),
    ],
)
def test_the_offset_of_the_header_is_used(offset: str, value: str) -> None:
    assert convert_date_time(DAY, "101530", offset, None) == (value, None)


def test_the_offset_takes_precedence_over_the_zone() -> None:
    assert convert_date_time(DAY, "101530", "-0500", BERLIN) == ("2024-01-05T10:15:30-05:00", None)


@pytest.mark.parametrize(
    ("day", "value"),
    [(DAY, "2024-01-05T10:15:30+01:00"), (datetime.date(2024, 7, 5), "2024-07-05T10:15:30+02:00")],
)
def test_the_zone_of_the_dataset_has_the_offset_of_the_day(day: datetime.date, value: str) -> None:
    assert convert_date_time(day, "101530", None, BERLIN) == (value, None)


def test_without_a_zone_only_the_date_is_used() -> None:
    assert convert_date_time(DAY, "101530", None, None) == ("2024-01-05", "time-zone-missing")


@pytest.mark.parametrize("time", ["10", "1015", "10:15"])
def test_for_a_time_without_seconds_only_the_date_is_used(time: str) -> None:
    assert convert_date_time(DAY, time, "+0100", None) == ("2024-01-05", "time-partial")


@pytest.mark.parametrize(
    ("time", "written"),
    [
        ("101530.5", "10:15:30.5"),
        ("101530.000", "10:15:30.000"),
        ("101530.123456", "10:15:30.123456"),
        ("10:15:30", "10:15:30"),
        ("10:15:30.25", "10:15:30.25"),
        ("000000", "00:00:00"),
        ("235959.999999", "23:59:59.999999"),
    ],
)
def test_fractions_are_kept_and_the_legacy_form_is_accepted(time: str, written: str) -> None:
    assert convert_date_time(DAY, time, "+0100", None) == (f"2024-01-05T{written}+01:00", None)


@pytest.mark.parametrize(
    "time",
    ["240000", "106000", "235960", "101530.1234567", "101530.", "1", "101", "10153", "noon", "-101530", "１０１５３０"],
)
def test_for_an_invalid_time_only_the_date_is_used(time: str) -> None:
    assert convert_date_time(DAY, time, "+0100", None) == ("2024-01-05", "value-omitted")


@pytest.mark.parametrize(
    "offset", ["+1401", "-1201", "+0160", "0100", "+01:00", "+1", "UTC", "-0000", "+010", "+01000", "٠١٠٠"]
)
def test_an_invalid_offset_is_omitted_with_a_finding(offset: str) -> None:
    assert parse_offset(offset) is None
    assert convert_date_time(DAY, "101530", offset, None) == ("2024-01-05", "value-omitted")
    assert convert_date_time(DAY, "101530", offset, BERLIN) == ("2024-01-05T10:15:30+01:00", "value-omitted")


@pytest.mark.parametrize(
    ("day", "time", "offset", "value"),
    [
        # the leap second of the end of 2016, in London, Berlin, New York and Kathmandu
        (datetime.date(2016, 12, 31), "235960", "+0000", "2016-12-31T23:59:60+00:00"),
        (datetime.date(2017, 1, 1), "005960.25", "+0100", "2017-01-01T00:59:60.25+01:00"),
        (datetime.date(2016, 12, 31), "185960", "-0500", "2016-12-31T18:59:60-05:00"),
        (datetime.date(2017, 1, 1), "054460", "+0545", "2017-01-01T05:44:60+05:45"),
    ],
)
def test_a_leap_second_is_kept(day: datetime.date, time: str, offset: str, value: str) -> None:
    assert convert_date_time(day, time, offset, None) == (value, None)


@pytest.mark.parametrize(
    ("day", "time"),
    [
        (datetime.date(2016, 12, 30), "235960"),  # not the end of a month
        (datetime.date(2016, 12, 31), "225960"),  # not the end of a day
        (datetime.date(2016, 12, 31), "235961"),
        (datetime.date(9999, 12, 31), "235960"),  # there is no later instant
    ],
)
def test_for_an_impossible_leap_second_only_the_date_is_used(day: datetime.date, time: str) -> None:
    assert convert_date_time(day, time, "+0000", None) == (day.isoformat(), "value-omitted")


def test_for_a_leap_second_without_a_zone_only_the_date_is_used() -> None:
    assert convert_date_time(datetime.date(2016, 12, 31), "235960", None, None) == ("2016-12-31", "time-zone-missing")


@pytest.mark.parametrize(
    ("text", "offset", "expected"),
    [
        (None, "+0100", (None, None)),
        ("", "+0100", (None, None)),
        ("2024", "+0100", ("2024", None)),
        ("202401", "+0100", ("2024-01", None)),
        ("20240105", "+0100", ("2024-01-05", None)),
        ("2024010510", "+0100", ("2024-01-05", "time-partial")),
        ("202401051015", "+0100", ("2024-01-05", "time-partial")),
        ("20240105101530", "+0100", ("2024-01-05T10:15:30+01:00", None)),
        ("20240105101530.123456", "+0100", ("2024-01-05T10:15:30.123456+01:00", None)),
        ("20240105101530-0500", "+0100", ("2024-01-05T10:15:30-05:00", None)),
        ("20240105101530", None, ("2024-01-05", "time-zone-missing")),
        ("20161231235960+0000", None, ("2016-12-31T23:59:60+00:00", None)),
        ("20241301", None, (None, "value-omitted")),
        ("20240230", None, (None, "value-omitted")),
        ("00000101", None, (None, "value-omitted")),
        ("20240105 101530", None, (None, "value-omitted")),
        ("2024-01-05", None, (None, "value-omitted")),
    ],
)
def test_a_dt_is_converted(text: str | None, offset: str | None, expected: tuple[str | None, str | None]) -> None:
    assert convert_dt(text, offset, None) == expected


def test_dates_with_a_time_are_sorted_before_dates_without() -> None:
    ordered = [
        "2023",
        "2024-01-05T00:30:00+01:00",
        "2024-01-04",
        "2024-01-05T01:00:00+01:00",
        "2024-01-05T00:00:00.5+00:00",
        "2024-01-05T23:59:00-05:00",
        "2024-01",
        "2024-06-30T23:59:59+00:00",
        "2024-06-30T23:59:60+00:00",
        "2024-07-01T02:00:01+02:00",
        "2024",
    ]
    # 2024-01-04 ends at midnight UTC, half an hour after 00:30 in Berlin
    assert sorted([ordered[-1], *ordered[:-1]], key=to_instant) == ordered


def test_an_invalid_offset_is_none() -> None:
    assert parse_offset(None) is None


def test_a_repeated_time_has_the_earlier_offset() -> None:
    # 27 October 2024: 03:00 +02:00 became 02:00 +01:00
    assert convert_date_time(datetime.date(2024, 10, 27), "023000", None, BERLIN) == (
        "2024-10-27T02:30:00+02:00",
        "time-ambiguous",
    )


def test_a_skipped_time_has_the_earlier_offset() -> None:
    # 31 March 2024: 02:00 +01:00 became 03:00 +02:00
    assert convert_date_time(datetime.date(2024, 3, 31), "023000", None, BERLIN) == (
        "2024-03-31T02:30:00+01:00",
        "time-ambiguous",
    )


def test_the_offset_of_the_header_resolves_a_repeated_time() -> None:
    assert convert_date_time(datetime.date(2024, 10, 27), "023000", "+0100", BERLIN) == (
        "2024-10-27T02:30:00+01:00",
        None,
    )


def test_an_offset_with_seconds_is_written_as_utc() -> None:
    # Berlin before 1 April 1893: local mean time, +00:53:28
    assert convert_date_time(datetime.date(1890, 1, 1), "120000", None, BERLIN) == ("1890-01-01T11:06:32+00:00", None)


def test_the_first_day_of_the_calendar_cannot_be_moved_to_utc() -> None:
    assert convert_date_time(datetime.date(1, 1, 1), "000000", None, BERLIN) == ("0001-01-01", None)


TIMES = st.one_of(
    st.none(),
    st.times().map(lambda time: time.strftime("%H%M%S.%f")),
    st.times().map(lambda time: time.strftime("%H%M%S")),
    st.times().map(lambda time: time.strftime("%H%M")),
    st.from_regex(r"[0-9:. ]{0,16}", fullmatch=True),
    st.text(max_size=10),
)
OFFSETS = st.one_of(st.none(), st.from_regex(r"[+-][01][0-9][0-6][0-9]", fullmatch=True), st.text(max_size=6))
ZONES = st.one_of(
    st.none(),
    st.sampled_from(
        [
            "UTC",
            "Europe/Berlin",
            "America/St_Johns",
            "Pacific/Apia",
            "Asia/Kathmandu",
            "Africa/Monrovia",
            "Europe/Dublin",
        ]
    ).map(ZoneInfo),
)

# local times without a zone, as in DICOM
LOCAL = st.builds(datetime.datetime.combine, st.dates(datetime.date(1, 1, 2), datetime.date(9999, 12, 30)), st.times())
MODERN = st.builds(
    datetime.datetime.combine, st.dates(datetime.date(1800, 1, 1), datetime.date(2100, 1, 1)), st.times()
)


@settings(deadline=None)
@given(st.dates(), TIMES, OFFSETS, ZONES)
def test_every_date_and_time_gives_a_fhir_date_time(
    day: datetime.date, time: str | None, offset: str | None, zone: ZoneInfo | None
) -> None:
    value, _ = convert_date_time(day, time, offset, zone)
    assert value is not None
    assert FHIR_DATE_TIME.fullmatch(value)
    assert to_instant(value).tzinfo is not None


@settings(deadline=None)
@given(
    st.one_of(st.from_regex(r"[0-9]{0,14}(\.[0-9]{0,7})?([+-][0-9]{4})?", fullmatch=True), st.text(max_size=20)), ZONES
)
def test_every_dt_gives_a_fhir_date_time(text: str, zone: ZoneInfo | None) -> None:
    value, code = convert_dt(text, None, zone)
    assert value is not None or not text or code == "value-omitted"
    assert value is None or FHIR_DATE_TIME.fullmatch(value)


@settings(deadline=None)
@given(LOCAL, st.integers(-720, 840))
def test_the_offset_of_the_header_keeps_the_instant(local: datetime.datetime, minutes: int) -> None:
    sign, (hours, rest) = "-" if minutes < 0 else "+", divmod(abs(minutes), 60)
    offset = f"{sign}{hours:02}{rest:02}"
    value, code = convert_date_time(local.date(), local.strftime("%H%M%S.%f"), offset if minutes else "+0000", None)
    zone = datetime.timezone(datetime.timedelta(minutes=minutes))
    assert code is None
    assert datetime.datetime.fromisoformat(value or "") == local.replace(tzinfo=zone)


@settings(deadline=None)
@given(MODERN, ZONES.filter(bool))
def test_the_zone_of_the_dataset_keeps_the_instant(local: datetime.datetime, zone: ZoneInfo) -> None:
    value, code = convert_date_time(local.date(), local.strftime("%H%M%S.%f"), None, zone)
    assert code in (None, "time-ambiguous")
    # through UTC: Python compares aware times of one zone by local time only
    expected = local.replace(tzinfo=zone).astimezone(datetime.UTC)
    assert datetime.datetime.fromisoformat(value or "").astimezone(datetime.UTC) == expected
