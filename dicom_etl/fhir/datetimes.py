"""DICOM dates, times and offsets -> FHIR dateTime.

A FHIR dateTime with a time must have seconds and a zone (R4 2.24.0.6). Where either is unknown the date stands alone;
nothing is invented. Not here: which of several values counts.
"""

from __future__ import annotations

import datetime
import re
from typing import NamedTuple
from zoneinfo import ZoneInfo

_TIME = re.compile(r"(\d\d)(?::?(\d\d)(?::?(\d\d)(\.\d{1,6})?)?)?", re.ASCII)  # TM (PS3.5 6.2); legacy HH:MM:SS
_OFFSET = re.compile(r"([+-])(\d\d)(\d\d)", re.ASCII)


class Moment(NamedTuple):
    """A FHIR dateTime, and the code of the finding that tells what is not as it should be."""

    value: str | None
    code: str | None = None


def moment(date: datetime.date | None, time: str | None, offset: str | None, zone: ZoneInfo | None) -> Moment:
    """Date, time (TM), TimezoneOffsetFromUTC and the dataset's zone as a FHIR dateTime.

    The header's offset counts before the dataset's zone. Of a local time that the clocks skipped or repeated the
    earlier offset is taken. An offset with seconds (local mean time, before zones) is written as UTC.
    """
    if date is None:
        return Moment(None)
    if not time:
        return Moment(date.isoformat())
    match = _TIME.fullmatch(time)
    if not match:
        return Moment(date.isoformat(), "value-left-out")
    if match[3] is None:
        return Moment(date.isoformat(), "time-partial")
    try:
        local = datetime.datetime.combine(date, datetime.time(int(match[1]), int(match[2]), int(match[3])))
    except ValueError:  # a leap second, or no time of day
        return Moment(date.isoformat(), "value-left-out")
    return _zoned(local, match[4] or "", offset, zone)


def offset_of(text: str | None) -> datetime.timezone | None:
    """TimezoneOffsetFromUTC (0008,0201): `&ZZXX` of -1200 to +1400; None where it is none."""
    match = _OFFSET.fullmatch(text or "")
    if not match or text == "-0000":  # PS3.3 C.12.1.1: -0000 is not used
        return None
    minutes = int(match[2]) * 60 + int(match[3])
    delta = datetime.timedelta(minutes=-minutes if match[1] == "-" else minutes)
    if int(match[3]) > 59 or not -12 * 60 <= delta.total_seconds() / 60 <= 14 * 60:
        return None
    return datetime.timezone(delta)


def _zoned(local: datetime.datetime, fraction: str, offset: str | None, zone: ZoneInfo | None) -> Moment:
    fixed = offset_of(offset)
    if fixed:
        return Moment(_written(local.replace(tzinfo=fixed), fraction))
    wrong = "value-left-out" if offset else None
    if zone is None:
        return Moment(local.date().isoformat(), wrong or "no-time-zone")
    early, late = (local.replace(tzinfo=zone, fold=fold) for fold in (0, 1))
    code = "time-ambiguous" if early.utcoffset() != late.utcoffset() else wrong
    return Moment(_written(early, fraction), code)


def _written(moment_: datetime.datetime, fraction: str) -> str:
    offset = moment_.utcoffset() or datetime.timedelta()
    if offset.total_seconds() % 60:
        try:
            moment_ = moment_.astimezone(datetime.UTC)
        except OverflowError:  # the first or last day of the calendar
            return moment_.date().isoformat()
    text = moment_.isoformat(timespec="seconds")
    return f"{text[:19]}{fraction}{text[19:]}"
