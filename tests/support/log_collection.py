"""Everything that is logged or warned of while a test runs."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.NOTSET)
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.name not in ("aiohttp.access", "aiohttp.server"):  # those of the servers of these tests
            self.told.append(f"{record.name} {self.format(record)} {record.args!r}")


@contextmanager
def collect_logs() -> Iterator[list[str]]:
    """Everything that any logger says at any level, and every warning."""
    collector = _Collector()
    known = [logging.getLogger(name) for name in ("aiohttp.client", "asyncio", "fhirpy", "dicom_etl", "dagster")]
    known += [one for one in logging.root.manager.loggerDict.values() if isinstance(one, logging.Logger)]
    loggers = [logging.getLogger(), *dict.fromkeys(known)]
    before = [(one, one.level, one.disabled) for one in loggers]
    for one in loggers:
        one.setLevel(logging.DEBUG)
        one.disabled = False
        if one is logging.root or not one.propagate:
            one.addHandler(collector)
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            yield collector.told
    finally:
        collector.told += [str(warning.message) for warning in warned]
        for one, level, disabled in before:
            one.setLevel(level)
            one.disabled = disabled
            one.removeHandler(collector)
