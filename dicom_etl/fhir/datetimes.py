"""DICOM dates, times and offsets as FHIR dateTimes.

A FHIR dateTime with a time must have seconds and a time zone (R4 2.24.0.6). If either is unknown, only the date is
used; nothing is invented.

Not here: choosing among the values of several instances (`rules.map_started`).
"""

from __future__ import annotations

import calendar
import datetime
import re
from functools import lru_cache
from typing import NamedTuple
from zoneinfo import ZoneInfo

_TIME = re.compile(r"(\d\d)(?::?(\d\d)(?::?(\d\d)(\.\d{1,6})?)?)?", re.ASCII)  # TM (PS3.5 6.2); legacy HH:MM:SS
_DATETIME = re.compile(r"(\d{4})(\d\d)?(\d\d)?(\d\d(?:\d\d(?:\d\d(?:\.\d{1,6})?)?)?)?([+-]\d{4})?", re.ASCII)  # DT
_OFFSET = re.compile(r"([+-])(\d\d)(\d\d)", re.ASCII)


class FhirDateTime(NamedTuple):
    """A FHIR dateTime, and the code of the finding that explains why it is missing, shortened or ambiguous."""

    value: str | None
    code: str | None = None


@lru_cache(maxsize=4096)  # a study and its series often have the same values
def convert_date_time(
    date: datetime.date | None, time: str | None, offset: str | None, zone: ZoneInfo | None
) -> FhirDateTime:
    """Convert a date, a time (TM), TimezoneOffsetFromUTC and the dataset's zone.

    The header's offset takes precedence over the dataset's zone. For a local time that the clocks skipped or repeated,
    the earlier offset is used. An offset with seconds (local mean time, before zones) is written as UTC. The second 60
    is accepted where a leap second is possible: at the end of a month in UTC (ITU-R TF.460).
    """
    if date is None:
        return FhirDateTime(None)
    if not time:
        return FhirDateTime(date.isoformat())
    match = _TIME.fullmatch(time)
    if not match:
        return FhirDateTime(date.isoformat(), "value-omitted")
    if match[3] is None:
        return FhirDateTime(date.isoformat(), "time-partial")
    is_leap_second = match[3] == "60"
    try:
        clock = datetime.time(int(match[1]), int(match[2]), 59 if is_leap_second else int(match[3]))
    except ValueError:  # not a time of day
        return FhirDateTime(date.isoformat(), "value-omitted")
    result = _add_zone(datetime.datetime.combine(date, clock), match[4] or "", offset, zone)
    return _add_leap_second(result) if is_leap_second else result


def convert_dt(text: str | None, offset: str | None, zone: ZoneInfo | None) -> FhirDateTime:
    """Convert a DT value (PS3.5 6.2); its own offset takes precedence over the header's and the dataset's zone."""
    if not text:
        return FhirDateTime(None)
    match = _DATETIME.fullmatch(text)
    try:
        date = datetime.date(int(match[1]), int(match[2] or 1), int(match[3] or 1)) if match else None
    except ValueError:
        date = None
    if not match or date is None:
        return FhirDateTime(None, "value-omitted")
    if not match[3]:
        return FhirDateTime(date.isoformat()[: 7 if match[2] else 4])
    return convert_date_time(date, match[4], match[5] or offset, zone)


def to_instant(value: str) -> datetime.datetime:
    """The instant of a FHIR dateTime, by which dateTimes are sorted.

    A date without a time is the end of its last day in UTC, so that a value with a time is sorted before it.
    """
    if "T" in value:
        is_leap_second = value[17:19] == "60"
        plain = f"{value[:17]}59{value[19:]}" if is_leap_second else value
        return datetime.datetime.fromisoformat(plain) + datetime.timedelta(seconds=is_leap_second)
    year, month, day = [*map(int, value.split("-")), 0, 0][:3]
    month = month or 12
    day = day or calendar.monthrange(year, month)[1]
    return datetime.datetime(year, month, day, 23, 59, 59, 999_999, datetime.UTC)


def _add_leap_second(result: FhirDateTime) -> FhirDateTime:
    """One second later than a result with the second 59, written as second 60."""
    value = result.value or ""
    if "T" not in value:
        return result
    try:
        next_second = to_instant(f"{value[:19]}{value[-6:]}").astimezone(datetime.UTC) + datetime.timedelta(seconds=1)
    except OverflowError:
        return FhirDateTime(value[:10], "value-omitted")
    if (next_second.day, next_second.hour, next_second.minute, next_second.second) != (1, 0, 0, 0):
        return FhirDateTime(value[:10], "value-omitted")
    return FhirDateTime(f"{value[:17]}60{value[19:]}", result.code)


def parse_offset(text: str | None) -> datetime.timezone | None:
    """TimezoneOffsetFromUTC (0008,0201): `&ZZXX` from -1200 to +1400; None if it is not valid."""
    match = _OFFSET.fullmatch(text or "")
    if not match or text == "-0000":  # PS3.3 C.12.1.1: -0000 is not used
        return None
    minutes = int(match[2]) * 60 + int(match[3])
    delta = datetime.timedelta(minutes=-minutes if match[1] == "-" else minutes)
    if int(match[3]) > 59 or not -12 * 60 <= delta.total_seconds() / 60 <= 14 * 60:
        return None
    return datetime.timezone(delta)


def _add_zone(local: datetime.datetime, fraction: str, offset: str | None, zone: ZoneInfo | None) -> FhirDateTime:
    fixed = parse_offset(offset)
    if fixed:
        return FhirDateTime(_format(local.replace(tzinfo=fixed), fraction))
    code = "value-omitted" if offset else None
    if zone is None:
        return FhirDateTime(local.date().isoformat(), code or "time-zone-missing")
    early, late = (local.replace(tzinfo=zone, fold=fold) for fold in (0, 1))
    if early.utcoffset() != late.utcoffset():
        code = "time-ambiguous"
    return FhirDateTime(_format(early, fraction), code)


def _format(zoned: datetime.datetime, fraction: str) -> str:
    offset = zoned.utcoffset() or datetime.timedelta()
    if offset.total_seconds() % 60:
        try:
            zoned = zoned.astimezone(datetime.UTC)
        except OverflowError:  # the first or last day of the calendar
            return zoned.date().isoformat()
    text = zoned.isoformat(timespec="seconds")
    return f"{text[:19]}{fraction}{text[19:]}"
