"""Collection of all log records and warnings of a test."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.NOTSET)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.name not in ("aiohttp.access", "aiohttp.server"):  # servers of the tests
            self.texts.append(f"{record.name} {self.format(record)} {record.args!r}")


@contextmanager
def collect_logs() -> Iterator[list[str]]:
    """The texts of all log records at any level, and of all warnings."""
    collector = _Collector()
    existing = [logging.getLogger(name) for name in ("aiohttp.client", "asyncio", "fhirpy", "dicom_etl", "dagster")]
    existing += [logger for logger in logging.root.manager.loggerDict.values() if isinstance(logger, logging.Logger)]
    loggers = [logging.getLogger(), *dict.fromkeys(existing)]
    states = [(logger, logger.level, logger.disabled) for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.DEBUG)
        logger.disabled = False
        if logger is logging.root or not logger.propagate:
            logger.addHandler(collector)
    try:
        with warnings.catch_warnings(record=True) as caught_warnings:
            warnings.simplefilter("always")
            yield collector.texts
    finally:
        collector.texts += [str(warning.message) for warning in caught_warnings]
        for logger, level, disabled in states:
            logger.setLevel(level)
            logger.disabled = disabled
            logger.removeHandler(collector)
