"""DICOM dates, times and offsets -> FHIR dateTime.

A FHIR dateTime with a time must have seconds and a zone (R4 2.24.0.6). Where either is unknown the date stands alone;
nothing is invented. Not here: which of several values counts.
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
    """A FHIR dateTime, and the code of the finding that tells what is not as it should be."""

    value: str | None
    code: str | None = None


@lru_cache(maxsize=4096)  # of a study and its series often the same
def convert_date_time(
    date: datetime.date | None, time: str | None, offset: str | None, zone: ZoneInfo | None
) -> FhirDateTime:
    """Date, time (TM), TimezoneOffsetFromUTC and the dataset's zone as a FHIR dateTime.

    The header's offset counts before the dataset's zone. Of a local time that the clocks skipped or repeated the
    earlier offset is taken. An offset with seconds (local mean time, before zones) is written as UTC. The second 60
    stands where there can be a leap second: at the end of a month in UTC (ITU-R TF.460).
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
    leap = match[3] == "60"
    try:
        clock = datetime.time(int(match[1]), int(match[2]), 59 if leap else int(match[3]))
    except ValueError:  # no time of day
        return FhirDateTime(date.isoformat(), "value-omitted")
    made = _zoned(datetime.datetime.combine(date, clock), match[4] or "", offset, zone)
    return _leaping(made) if leap else made


def convert_dt(text: str | None, offset: str | None, zone: ZoneInfo | None) -> FhirDateTime:
    """A DT (PS3.5 6.2) as a FHIR dateTime; its own offset counts before the header's and the dataset's zone."""
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
    """When a FHIR dateTime was, so that they can be put in order.

    A date alone is taken for the end of its last day in UTC: what is known exactly comes before it.
    """
    if "T" in value:
        leap = value[17:19] == "60"
        moment_ = datetime.datetime.fromisoformat(f"{value[:17]}59{value[19:]}" if leap else value)
        return moment_ + datetime.timedelta(seconds=leap)
    year, month, day = [*map(int, value.split("-")), 0, 0][:3]
    month = month or 12
    day = day or calendar.monthrange(year, month)[1]
    return datetime.datetime(year, month, day, 23, 59, 59, 999_999, datetime.UTC)


def _leaping(made: FhirDateTime) -> FhirDateTime:
    """The convert_date_time one second later, which has the number 60."""
    value = made.value or ""
    if "T" not in value:
        return made
    try:
        after = to_instant(f"{value[:19]}{value[-6:]}").astimezone(datetime.UTC) + datetime.timedelta(seconds=1)
    except OverflowError:
        return FhirDateTime(value[:10], "value-omitted")
    if (after.day, after.hour, after.minute, after.second) != (1, 0, 0, 0):
        return FhirDateTime(value[:10], "value-omitted")
    return FhirDateTime(f"{value[:17]}60{value[19:]}", made.code)


def parse_offset(text: str | None) -> datetime.timezone | None:
    """TimezoneOffsetFromUTC (0008,0201): `&ZZXX` of -1200 to +1400; None where it is none."""
    match = _OFFSET.fullmatch(text or "")
    if not match or text == "-0000":  # PS3.3 C.12.1.1: -0000 is not used
        return None
    minutes = int(match[2]) * 60 + int(match[3])
    delta = datetime.timedelta(minutes=-minutes if match[1] == "-" else minutes)
    if int(match[3]) > 59 or not -12 * 60 <= delta.total_seconds() / 60 <= 14 * 60:
        return None
    return datetime.timezone(delta)


def _zoned(local: datetime.datetime, fraction: str, offset: str | None, zone: ZoneInfo | None) -> FhirDateTime:
    fixed = parse_offset(offset)
    if fixed:
        return FhirDateTime(_written(local.replace(tzinfo=fixed), fraction))
    wrong = "value-omitted" if offset else None
    if zone is None:
        return FhirDateTime(local.date().isoformat(), wrong or "time-zone-missing")
    early, late = (local.replace(tzinfo=zone, fold=fold) for fold in (0, 1))
    code = "time-ambiguous" if early.utcoffset() != late.utcoffset() else wrong
    return FhirDateTime(_written(early, fraction), code)


def _written(moment_: datetime.datetime, fraction: str) -> str:
    offset = moment_.utcoffset() or datetime.timedelta()
    if offset.total_seconds() % 60:
        try:
            moment_ = moment_.astimezone(datetime.UTC)
        except OverflowError:  # the first or last day of the calendar
            return moment_.date().isoformat()
    text = moment_.isoformat(timespec="seconds")
    return f"{text[:19]}{fraction}{text[19:]}"
