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
from urllib.parse import urlsplit

from dicom_etl.errors import UserError
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


@dataclass(frozen=True)
class Check:
    """One check and its result, a sentence."""

    check: str
    ok: bool
    result: str


def run_checks(settings: Settings) -> list[Check]:
    """Check everything that a run needs."""
    version = ".".join(map(str, sys.version_info[:3]))
    return [
        Check("Python", sys.version_info >= (3, 11), version),
        *_check_datasets(settings),
        _check("crosswalk", partial(_describe_crosswalk, settings)),
        _check("resource ids", partial(_describe_ids, settings)),
        *(Check("secrets", True, f"warning: {risk}") for risk in _find_exposed_secrets(settings)),
        _check("lake", partial(_describe_lake, settings)),
        _check("upload ledger", partial(_describe_ledger, settings)),
        *_check_server(settings.fhir),
    ]


def _check(name: str, describe: Callable[[], str], error_type: type[Exception] = UserError) -> Check:
    """A check that passes unless the description raises an error."""
    try:
        return Check(name, True, describe())
    except (UserError, OSError, error_type) as error:
        return Check(name, False, str(error))


def _check_datasets(settings: Settings) -> Iterator[Check]:
    try:
        datasets = find_datasets(settings)
    except SettingsError as error:
        yield Check("datasets", False, str(error))
        return
    if not datasets:
        yield Check("datasets", True, "none registered: name folders on the command line")
    for name, dataset in datasets.items():
        check = _check(f"dataset {name}", partial(_describe_location, name, dataset))
        zone = dataset.time_zone or settings.time_zone
        yield Check(check.check, check.ok, f"{check.result}, {zone or 'no time zone: dates without times'}")


def _describe_location(name: str, dataset: DatasetSettings) -> str:
    return open_source(name, dataset).location


def _describe_crosswalk(settings: Settings) -> str:
    lines = len(read_crosswalk(settings.crosswalk))
    return f"{settings.crosswalk}: {lines:,} line{'' if lines == 1 else 's'}" if settings.crosswalk else "none"


def _describe_ids(settings: Settings) -> str:
    ids = settings.resource_ids()
    if ids.is_guessable:
        return (
            "warning: the key is derived from `namespace`, so that anyone who knows a PatientID can compute "
            "the id of its Patient: "
            f"make a key with `{NEW_ID_KEY}`, keep it, and set {ID_KEY_VARIABLE} or id_key_file before the first upload"
        )
    return f"key {ids.key_fingerprint} (fingerprint); all lakes of the namespace {ids.namespace} must share this key"


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
        yield Check("FHIR server", True, "none: the NDJSON files of the lake are the result")
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
