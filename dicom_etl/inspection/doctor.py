"""The checks of `dicom-etl doctor`: whether settings, datasets, lake and FHIR server are ready for a run.

Changes nothing.
"""

from __future__ import annotations

import asyncio
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from dicom_etl.errors import UserError
from dicom_etl.fhir.corrections import read_corrections
from dicom_etl.identity.crosswalk import read_crosswalk
from dicom_etl.lake import database
from dicom_etl.lake.location import has_lake
from dicom_etl.lake.tables import Lake
from dicom_etl.settings import (
    ID_KEY_VARIABLE,
    NEW_ID_KEY,
    SECRETS,
    DatasetSettings,
    FhirSettings,
    Settings,
    SettingsError,
)
from dicom_etl.sources import open_source
from dicom_etl.sources.registry import find_datasets

Status = Literal["ok", "warn", "wrong"]  # warn: a run works, but there is a risk


@dataclass(frozen=True)
class Check:
    """One check and its result, a sentence."""

    check: str
    status: Status
    result: str

    @property
    def ok(self) -> bool:
        """Whether a run works; there may be a warning."""
        return self.status != "wrong"


def run_checks(settings: Settings) -> list[Check]:
    """Check everything that a run needs."""
    version = ".".join(map(str, sys.version_info[:3]))
    return [
        Check("Python", "ok" if sys.version_info >= (3, 11) else "wrong", version),
        *_check_datasets(settings),
        _check("crosswalk", partial(_describe_crosswalk, settings)),
        _check("corrections", partial(_describe_corrections, settings)),
        _check_ids(settings),
        *(Check("secrets", "warn", risk) for risk in _find_exposed_secrets(settings)),
        _check("lake", partial(_describe_lake, settings)),
        _check("upload ledger", partial(_describe_ledger, settings)),
        *_check_server(settings.fhir),
    ]


def _check(name: str, describe: Callable[[], str], error_type: type[Exception] = UserError) -> Check:
    """A check that passes unless the description raises an error."""
    try:
        return Check(name, "ok", describe())
    except (UserError, OSError, error_type) as error:
        return Check(name, "wrong", str(error))


def _check_datasets(settings: Settings) -> Iterator[Check]:
    try:
        datasets = find_datasets(settings)
    except SettingsError as error:
        yield Check("datasets", "wrong", str(error))
        return
    if not datasets:
        yield Check("datasets", "ok", "none registered: name folders on the command line")
    for name, dataset in datasets.items():
        check = _check(f"dataset {name}", partial(_describe_location, name, dataset))
        zone = dataset.time_zone or settings.time_zone
        yield Check(check.check, check.status, f"{check.result}, {zone or 'no time zone: dates without times'}")


def _describe_location(name: str, dataset: DatasetSettings) -> str:
    return open_source(name, dataset).location


def _describe_crosswalk(settings: Settings) -> str:
    return _describe_file(settings.crosswalk, len(read_crosswalk(settings.crosswalk)))


def _describe_corrections(settings: Settings) -> str:
    return _describe_file(settings.corrections, len(read_corrections(settings.corrections)))


def _describe_file(path: str | None, lines: int) -> str:
    return f"{path}: {lines:,} line{'' if lines == 1 else 's'}" if path else "none"


def _check_ids(settings: Settings) -> Check:
    name = "resource ids"
    try:
        ids = settings.resource_ids()
    except (UserError, OSError) as error:
        return Check(name, "wrong", str(error))
    if ids.is_guessable:
        text = (
            "the key is derived from `namespace`, so that anyone who knows a PatientID can compute the id of its "
            f"Patient: make a key with `{NEW_ID_KEY}`, keep it, and set {ID_KEY_VARIABLE} or id_key_file before the "
            "first upload"
        )
        return Check(name, "warn", text)
    text = f"key {ids.key_fingerprint} (fingerprint); all lakes of the namespace {ids.namespace} must share this key"
    return Check(name, "ok", text)


def _describe_lake(settings: Settings) -> str:
    if "://" not in settings.lake:
        folder = Path(settings.lake)
        while not folder.exists():
            folder = folder.parent
        probe = folder / ".dicom-etl-probe"
        probe.write_bytes(b"")
        probe.unlink()
    if not has_lake(settings.lake):
        return f"{settings.lake}: will be created"
    lake = Lake(settings.lake, ledger_url=settings.database).open()
    lake.check_id_key(settings.resource_ids().key_fingerprint)
    return f"{settings.lake}: exists"


def _describe_ledger(settings: Settings) -> str:
    lake = Lake(settings.lake, ledger_url=settings.database)
    url = database.database_url(lake)
    if url.get_backend_name() == "sqlite":
        return f"{url.database}: {'exists' if database.has_database(lake) else 'will be created'}"
    database.check_connection(lake)
    return f"PostgreSQL, database {url.database} on {url.host or 'this machine'}: exists"


def _check_server(fhir: FhirSettings) -> Iterator[Check]:
    if not fhir.url:
        yield Check("FHIR server", "ok", "none: the NDJSON files of the lake are the result")
        return
    from dicom_etl.fhir_client import FhirError, check_server
    from dicom_etl.fhir_connection import choose_authentication, choose_method, open_client

    def describe_authentication() -> str:
        choose_authentication(fhir)  # raises an error if anything is missing
        method = choose_method(fhir)
        return "no credentials are sent" if method == "none" else f"{method}: complete"

    async def describe_server() -> str:
        async with open_client(fhir) as client:
            is_client_assigned = await check_server(client, fhir.version, fhir.client_assigned)
            ids = "client-assigned" if is_client_assigned else "server-assigned"
            return f"{client.url}: FHIR {fhir.version}, accepts transactions, ids are {ids}"

    yield _check("authentication", describe_authentication)
    yield _check("FHIR server", lambda: asyncio.run(describe_server()), FhirError)


def _find_exposed_secrets(settings: Settings) -> Iterator[str]:
    """Secrets that are easier to read than they need to be, and what to do about it."""
    fhir = settings.fhir
    files = {"id_key_file": settings.id_key_file}
    if fhir.url:
        files |= {f"fhir.{source.setting}": getattr(fhir, source.setting) for source in SECRETS.values()}
    for setting, file in files.items():
        if file and Path(file).is_file() and Path(file).stat().st_mode & stat.S_IROTH:
            yield f"{setting} {file} can be read by everybody: chmod o-r"
    if urlsplit(fhir.url or "").username is not None:
        yield f"fhir.url contains a password: set fhir.username, and the password by {SECRETS['password'].description}"
