"""doctor: whether the settings, the datasets, the lake and the server are as a run needs them. Changes nothing."""

from __future__ import annotations

import asyncio
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dicom_etl.fhir_client import FhirError, check_server, parse_credentials
from dicom_etl.fhir_connection import choose_authentication, choose_method, open_client
from dicom_etl.identity.crosswalk import read_crosswalk
from dicom_etl.lake import database
from dicom_etl.lake.tables import Lake, LakeError
from dicom_etl.settings import (
    ID_KEY_VARIABLE,
    NEW_ID_KEY,
    SECRETS,
    DatasetSettings,
    FhirSettings,
    Settings,
    SettingsError,
)
from dicom_etl.sources import SourceError, open_source
from dicom_etl.sources.registry import find_datasets


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    what: str
    ok: bool
    said: str


def run_checks(settings: Settings) -> list[Check]:
    """Whether everything that a run needs is there."""
    version = ".".join(map(str, sys.version_info[:3]))
    return [
        Check("Python", sys.version_info >= (3, 11), version),
        *_dataset_checks(settings),
        _tried("crosswalk", lambda: f"{len(read_crosswalk(settings.crosswalk))} lines"),
        _tried("resource ids", partial(_describe_ids, settings)),
        *_secret_checks(settings),
        _lake_check(settings),
        _tried("upload ledger", partial(_describe_ledger, settings)),
        *_server_checks(settings.fhir),
    ]


def _tried(what: str, look: Callable[[], str]) -> Check:
    try:
        return Check(what, True, look())
    except (SettingsError, SourceError, LakeError, FhirError, OSError) as error:
        return Check(what, False, str(error))


def _dataset_checks(settings: Settings) -> Iterator[Check]:
    try:
        known = find_datasets(settings)
    except SettingsError as error:
        yield Check("datasets", False, str(error))
        return
    if not known:
        yield Check("datasets", True, "none registered: name folders on the command line")
    for name, dataset in known.items():
        check = _tried(f"dataset {name}", partial(_location, name, dataset))
        zone = dataset.time_zone or settings.time_zone
        yield Check(check.what, check.ok, f"{check.said}, {zone or 'no time zone: only dates are given'}")


def _location(name: str, dataset: DatasetSettings) -> str:
    return open_source(name, dataset).location


def _describe_ids(settings: Settings) -> str:
    ids = settings.resource_ids()
    if ids.is_guessable:
        return (
            "warning: the key is derived from `namespace`, so that anyone who knows a PatientID can compute "
            "the id of its Patient: "
            f"make a key with `{NEW_ID_KEY}`, keep it, and set {ID_KEY_VARIABLE} or id_key_file before the first upload"
        )
    return f"key {ids.key_fingerprint} (fingerprint); all lakes of the namespace {ids.namespace} must share this key"


def _lake_check(settings: Settings) -> Check:
    def look() -> str:
        if "://" not in settings.lake:
            folder = Path(settings.lake)
            while not folder.exists():
                folder = folder.parent
            probe = folder / ".dicom-etl-probe"
            probe.write_bytes(b"")
            probe.unlink()
        lake = Lake(settings.lake, ledger_url=settings.database)
        if not lake.exists("lake.json"):
            return f"{settings.lake}: will be made"
        lake.open().check_id_key(settings.resource_ids().key_fingerprint)
        return f"{settings.lake}: there"

    return _tried("lake", look)


def _describe_ledger(settings: Settings) -> str:
    lake = Lake(settings.lake, ledger_url=settings.database)
    url = database.database_url(lake)
    if url.get_backend_name() == "sqlite":
        return f"{url.database}: {'there' if database.exists(lake) else 'will be created'}"
    database.check_connection(lake)
    return f"PostgreSQL, database {url.database} on {url.host or 'this machine'}: there"


def _server_checks(fhir: FhirSettings) -> Iterator[Check]:
    if not fhir.url:
        yield Check("FHIR server", True, "none: the NDJSON files of the lake are the result")
        return
    yield _tried("authentication", lambda: _describe_authentication(fhir))

    async def look() -> str:
        async with open_client(fhir) as client:
            ours = await check_server(client, fhir.version, fhir.client_assigned)
            ids = "our ids" if ours else "its own ids"
            return f"{client.url}: FHIR {fhir.version}, accepts transactions, resources have {ids}"

    yield _tried("FHIR server", lambda: asyncio.run(look()))


def _describe_authentication(fhir: FhirSettings) -> str:
    choose_authentication(fhir)  # raises, if anything is missing
    method = choose_method(fhir)
    return "no credentials are sent" if method == "none" else f"{method}: all that it needs is there"


def _secret_checks(settings: Settings) -> Iterator[Check]:
    yield from (Check("secrets", True, f"warning: {said}") for said in _careless(settings))


def _careless(settings: Settings) -> Iterator[str]:
    """Ways in which a secret is easier to come by than it need be."""
    fhir = settings.fhir
    files = {f"fhir.{place.setting}": getattr(fhir, place.setting) for place in SECRETS.values() if fhir.url}
    for setting, file in {"id_key_file": settings.id_key_file, **files}.items():
        if file and Path(file).is_file() and Path(file).stat().st_mode & stat.S_IROTH:
            yield f"{setting} {file} can be read by everybody: chmod o-r"
    if parse_credentials(fhir.url or ""):
        yield f"fhir.url holds a password: set fhir.username, and the password by {SECRETS['password'].places}"
