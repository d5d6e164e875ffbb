"""forget: a withdrawn subject, or a whole dataset, leaves the server, the ledger and the lake -> `withdrawn`.

The record comes first: from then on the crawl leaves the subject out, and it says what is still to be deleted where.
Then the server, the ledger, and the lake. Killed at any moment, the same call does the rest. What a server does not let
go, or a server that is not the configured one, stays in the record until it is forgotten there too.

Not here: what of the server goes (`upload.deletion`), what of the lake goes (`stages.forgetting`).
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from dicom_etl.fhir.corrections import read_corrections
from dicom_etl.fhir_client import FhirError, UnreachableError, UnsuitableServerError, check_server
from dicom_etl.fhir_connection import open_client, server_name
from dicom_etl.identity.crosswalk import read_crosswalk
from dicom_etl.identity.ids import ResourceIds
from dicom_etl.lake.schemas import WITHDRAWN
from dicom_etl.lake.tables import Lake
from dicom_etl.lake.withdrawn import Row, Withdrawn, left_of, left_text
from dicom_etl.settings import Settings, SettingsError
from dicom_etl.stages.forgetting import clear, is_known, known_of, sharing
from dicom_etl.upload.deletion import Deleted, ServerContent, Withdrawal, WithdrawnLedger, delete_places, locate
from dicom_etl.upload.export import export_ledger
from dicom_etl.upload.items import IdStrategy
from dicom_etl.upload.ledger import Key, Ledger, read_servers

_COLUMNS = {"Patient": "patients", "ImagingStudy": "imaging_studies", "Endpoint": "endpoints"}
Places = dict[str, set[str]]  # by server, Type/id there


@dataclass(frozen=True)
class Forgotten:
    """What was forgotten, or in a dry run would be.

    `files` and `studies` are what the lake lost. `resources` counts by server and type what was deleted there.
    `left` are sentences about what somebody must still look at, `told` what is good to know. `unreachable` says why
    nothing, or not everything, was done.
    """

    dataset: str
    files: int
    studies: int
    resources: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    told: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    unreachable: str | None = None
    dry_run: bool = False

    @property
    def exit_code(self) -> int:
        """0 all of it; 1 something is left; 3 the server was out of reach."""
        return 3 if self.unreachable else int(bool(self.left))


def forget(dataset: str, subject: str | None, lake: Lake, settings: Settings, *, dry_run: bool = False) -> Forgotten:
    """Remove a subject (or unit), or with None the whole dataset.

    Raises:
        SettingsError: there is no such dataset or subject.
    """
    if subject == "":  # an empty variable of a script must not mean everything
        raise SettingsError("the name of the subject is empty")
    if not dry_run:
        _check_known(lake, dataset, subject, settings.resource_ids())  # before a lock of that name is made
        with lake.lock(dataset, f"forget in {dataset}"):
            return _Forgetting(lake, settings, dataset, subject).do()
    return _Forgetting(lake, settings, dataset, subject).plan()


def readmit(dataset: str, subject: str | None, lake: Lake, ids: ResourceIds | None = None) -> None:
    """Take the record of a withdrawal back: the next run loads again what lies in the tree.

    Raises:
        SettingsError: there is no such record.
    """
    if not lake.exists(WITHDRAWN.path(dataset=dataset)):
        raise SettingsError(f"nothing of {dataset} was withdrawn")
    with lake.lock(dataset, f"readmission to {dataset}"):
        record = Withdrawn.of(lake, dataset, ids)
        if record.row(subject) is None:
            raise SettingsError(
                f"{subject} of {dataset} was not withdrawn" if subject else f"{dataset} was not withdrawn"
            )
        record.without_row(subject).write(lake)


def _check_known(lake: Lake, dataset: str, subject: str | None, ids: ResourceIds) -> None:
    record = Withdrawn.of(lake, dataset, ids)
    if record.row(subject) or is_known(lake, dataset, subject):
        return
    if subject is None or not (record or is_known(lake, dataset, None)):
        raise SettingsError(f"the lake has no dataset {dataset}")
    raise SettingsError(f"{dataset} has no subject {subject}; `dicom-etl status` and the folders say which there are")


class _Forgetting:
    """One withdrawal."""

    def __init__(self, lake: Lake, settings: Settings, dataset: str, subject: str | None) -> None:
        self._lake, self._settings, self._dataset, self._subject = lake, settings, dataset, subject
        self._ids = settings.resource_ids()
        _check_known(lake, dataset, subject, self._ids)
        self._known = known = known_of(lake, dataset, subject)
        self._record = Withdrawn.of(lake, dataset, self._ids)
        self._ours = server_name(settings.fhir.url) if settings.fhir.url else ""
        self._withdrawal = Withdrawal(dataset, subject, known.studies, known.patients, known.needed, known.is_all)
        self._content: dict[str, ServerContent] = {}
        for name in read_servers(lake):
            with Ledger.of(lake, name) as ledger:
                self._content[name] = WithdrawnLedger(ledger, self._withdrawal).content()
        self._left = self._planned()
        self._told = [*self._of_shared_patients(), *self._of_written_lists()]

    def _planned(self) -> Places:
        """What is to be deleted: what the ledgers have, and what an earlier call could not delete."""
        before = left_of(self._record.row(self._subject))
        needed = {f"Patient/{patient}" for patient in self._known.needed}
        places: Places = defaultdict(set)
        for name in sorted({*before, *self._content}):
            places[name] = (before.get(name, set()) - needed) | _texts(self._content_of(name).places)
        return places

    def _content_of(self, server: str) -> ServerContent:
        return self._content.get(server) or ServerContent()

    def plan(self) -> Forgotten:
        """What would be done."""
        left = (*self._of_foreign(), *self._of_others())
        self._left[self._ours] |= _texts(self._content_of(self._ours).unsure)
        return self._forgotten(self._left, left, dry_run=True)

    def do(self) -> Forgotten:
        """Remove it."""
        asks = self._asks()
        if asks:
            try:
                strangers = asyncio.run(self._look())
            except (UnreachableError, UnsuitableServerError) as error:
                return self._forgotten({}, unreachable=f"nothing was removed, since {error}")
            if strangers:
                return self._forgotten({}, (self._of_strangers(strangers),))
        self._note(set())
        gone = asyncio.run(self._delete()) if asks else Deleted(set(), set())
        if gone.refused:
            return self._broken_off(gone)
        self._left[self._ours] = _texts(gone.needed)
        self._note(_texts(gone.done))
        clear(self._lake, self._known, self._record)
        left = (*self._of_needed(), *self._of_foreign(), *self._of_others())
        return self._forgotten({self._ours: _texts(gone.done)}, left, cleared=True)

    # -- the configured server

    def _asks(self) -> bool:
        """Whether the configured server has, or may have, anything of it."""
        return bool(self._left[self._ours]) or self._content_of(self._ours).knows_dataset

    async def _look(self) -> int:
        """See that the server answers, and look for what the ledger is not sure of; returns how many it does not know.

        Raises:
            UnreachableError: the server does not answer, or does not serve.
            UnsuitableServerError: it is none of ours.
        """
        fhir, ours = self._settings.fhir, self._ours
        content = self._content_of(ours)
        async with open_client(fhir) as client:
            strategy = IdStrategy(
                self._settings.namespace, await check_server(client, fhir.version, fhir.client_assigned)
            )
            try:
                unknown = await locate(client, strategy, self._known.made - content.known)
                self._left[ours] |= _texts(
                    await locate(client, strategy, content.unsure | content.replaced, by_id=True)
                )
            except FhirError as error:
                raise UnreachableError(f"{client.url}: {error}") from None
        return len(_texts(unknown) - self._left[ours])

    async def _delete(self) -> Deleted:
        """Delete, then forget in the ledger: under one lock, so that no upload relies on a Patient that goes."""
        fhir = self._settings.fhir
        places: set[Key] = {(kind, identity) for kind, _, identity in map(_partition, self._left[self._ours])}
        async with open_client(fhir) as client:
            with self._lake.lock(f"shared of {self._ours}", f"forget in {self._dataset}"):
                gone = await delete_places(client, places)
                if not gone.refused and self._ours in self._content:
                    with Ledger.of(self._lake, self._ours) as ledger:
                        WithdrawnLedger(ledger, self._withdrawal).drop()
                        await export_ledger(self._lake, ledger, self._dataset)
        return gone

    def _broken_off(self, gone: Deleted) -> Forgotten:
        """The server stopped in the middle: the lake keeps all, so that the next call knows what is to be deleted."""
        text = f"{self._ours}: not everything was deleted, and the lake has it still; run this again: {gone.refused}"
        places = {self._ours: _texts(gone.done)}
        if gone.is_unreachable:
            return self._forgotten(places, unreachable=text)
        return self._forgotten(places, (text,))

    # -- the record

    def _note(self, done: Collection[str]) -> None:
        """Write the record: what is withdrawn, what was deleted, what is still to be deleted."""
        row = self._record.row(self._subject) or self._new_row()
        kinds = Counter(place.partition("/")[0] for place in done)
        names = {*(row["servers"] or "").split(), *([self._ours] if done else [])}
        row |= {column: row[column] + kinds[kind] for kind, column in _COLUMNS.items()}
        row |= {
            "files": max(row["files"], self._known.files),
            "studies": max(row["studies"], len(self._known.studies)),
            "servers": " ".join(sorted(names)) or None,
            "left": left_text(self._left),
        }
        self._record = self._record.with_row(row, self._subject)
        self._record.write(self._lake)

    def _new_row(self) -> Row:
        digest = self._ids.withdrawal_digest(self._dataset, self._subject) if self._subject else None
        id_key = self._ids.key_fingerprint if self._subject else None
        counts = dict.fromkeys(("files", "studies", *_COLUMNS.values()), 0)
        rest = {"digest": digest, "id_key": id_key, "servers": None, "left": None, "time": datetime.now(UTC)}
        return {"dataset": self._dataset, "namespace": self._ids.namespace, **counts, **rest}

    # -- what is said

    def _of_strangers(self, count: int) -> str:
        return (
            f"nothing was removed: {self._ours} has {count} resources of it that the ledger does not know, as after an "
            f"upload that was killed; run `dicom-etl upload {self._dataset}`, then this again"
        )

    def _of_needed(self) -> Iterator[str]:
        for place in sorted(self._left[self._ours]):
            yield (
                f"{place} stays on {self._ours}, since resources that are not ours refer to it; run this again when "
                "they are gone"
            )

    def _of_foreign(self) -> Iterator[str]:
        for place in sorted(self._content_of(self._ours).external):
            yield f"{place} on {self._ours} is another client's and has series of it: remove them there"

    def _of_others(self) -> Iterator[str]:
        for name, places in sorted(self._left.items()):
            count = len(places) + len(self._content_of(name).unsure)
            if count and name != self._ours:
                yield (
                    f"{name} has {count} resources of it and is not the configured server: run this again with "
                    "--fhir-url and its address"
                )

    def _of_shared_patients(self) -> Iterator[str]:
        count = max((content.kept for content in self._content.values()), default=0)
        if count:
            names = ", ".join(sharing(self._lake, self._known))
            yield (
                f"{count} Patients stay, since studies of {names} refer to them; upload {names} to take away what was "
                "said of them here alone"
            )

    def _of_written_lists(self) -> Iterator[str]:
        lists: dict[str, list[tuple[str, str | None]]] = {
            "crosswalk": [(line.dataset, line.subject) for line in read_crosswalk(self._settings.crosswalk)],
            "corrections file": [(line.dataset, line.subject) for line in read_corrections(self._settings.corrections)],
        }
        for what, lines in lists.items():
            if any(name == self._dataset and self._subject in (None, subject) for name, subject in lines):
                yield f"the {what} still has lines of it: remove them"

    def _forgotten(
        self,
        places: Mapping[str, Collection[str]],
        left: tuple[str, ...] = (),
        *,
        cleared: bool = False,
        unreachable: str | None = None,
        dry_run: bool = False,
    ) -> Forgotten:
        files, studies = (self._known.files, len(self._known.studies)) if cleared or dry_run else (0, 0)
        told = tuple(self._told) if places or not (left or unreachable) else ()
        return Forgotten(self._dataset, files, studies, _by_type(places), told, left, unreachable, dry_run)


def _texts(places: Collection[Key]) -> set[str]:
    """Places as `Type/id`, as the record has them."""
    return {"/".join(place) for place in places}


def _partition(place: str) -> tuple[str, str, str]:
    return place.partition("/")


def _by_type(places: Mapping[str, Collection[str]]) -> dict[str, dict[str, int]]:
    kinds = {name: Counter(place.partition("/")[0] for place in found) for name, found in places.items() if found}
    return {name: dict(sorted(counts.items())) for name, counts in sorted(kinds.items())}
