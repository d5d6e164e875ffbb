"""The upload of one dataset: its own Patients, then its ImagingStudies, one ledger per unit."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from dicom_etl.findings import Finding, findings_table
from dicom_etl.identity.names import encode_name
from dicom_etl.lake.fingerprints import fingerprint
from dicom_etl.lake.locks import LockHeldError
from dicom_etl.lake.schemas import DATASET_FINDINGS, OUTCOMES
from dicom_etl.server.tasks import ended
from dicom_etl.server.transactions import Key
from dicom_etl.upload.built import Built, rows_at
from dicom_etl.upload.flowing import Flow, send_prepared
from dicom_etl.upload.ledger import Ledger, Row, may_be_there, on_server
from dicom_etl.upload.merging import Contribution, merged
from dicom_etl.upload.parts import (
    Candidate,
    Part,
    Resource,
    announce,
    candidate_of,
    mark_gone,
    parts_of,
    state_of,
    word,
)
from dicom_etl.upload.patients import joined, placed
from dicom_etl.upload.pruning import deleted
from dicom_etl.upload.reconciling import fetched
from dicom_etl.upload.replaced import with_lost
from dicom_etl.upload.run import Run, Uploaded
from dicom_etl.upload.shared import Shared
from dicom_etl.upload.studies import judge, look_up, own_place
from dicom_etl.upload.telling import contradicting, findings_of


class DatasetUpload:
    """A dataset's own Patients and its ImagingStudies: one ledger per unit."""

    def __init__(self, run: Run, built: Built, shared: Shared) -> None:
        self._run, self._built, self._shared = run, built, shared
        self._parts: dict[str, Part] = {}
        self._left: list[Part] = []
        self._counts: Counter[tuple[str, str]] = Counter()
        self._findings: list[Finding] = []
        self._removed: list[str] = []
        self._moved: dict[Key, Row] = {}
        self.stopped: str | None = None  # why it was left in the middle, the others going on
        self._done = 0

    async def bring(self) -> None:
        """Bring the dataset onto the server and write its findings."""
        run, name = self._run, self._built.dataset
        with run.lake.lock(name, f"upload of {name}"):
            self._built = Built.of(run.lake, name)  # a build may have ended while this one waited
            folder = f"outcomes/{encode_name(run.server)}/{encode_name(name)}"
            run.lake.sweep(folder)
            work = [unit for unit in self._built.committed if not self._is_done(unit)]
            self._moved = self._rows_of(folder, set(self._built.committed) - set(work))
            await self._bring_units(work)
            for unit in sorted(set(self._built.units) - set(self._built.committed)):
                self._report(Part(unit, self._ledger(unit)))  # what is being built is neither here nor gone
            self._gone_units(folder)
            if run.options.prune:
                await self._prune()
            self._write_findings()

    def _ledger(self, unit: str) -> Ledger:
        return self._run.ledger(OUTCOMES, dataset=self._built.dataset, unit=unit)

    # -- what is to do

    def _mark(self, unit: str) -> str:
        """What a unit's upload depends on: its resources, those of its Patients' other units, and links."""
        patients = sorted(self._built.patients.get(unit, ()))
        units = {unit}.union(*(self._built.homes[patient] for patient in patients))
        links = [self._id_on_server(patient) for patient in patients if self._is_shared(patient)]
        if not self._run.addressing.takes_ids:  # its own may come back under another id, too
            links += [self._place_on_server(("Patient", one)) for one in patients if not self._is_shared(one)]
        return fingerprint([self._built.mark(one) for one in sorted(units)], links)

    def _id_on_server(self, patient: str) -> str | None:
        row = self._shared.row(("Patient", patient))
        return str(row["id_on_server"]) if row and on_server(row) and row["state"] != "held" else None

    def _is_shared(self, patient: str) -> bool:
        """Whether other datasets may have the Patient, also one that came after the shared ones were sent."""
        return patient in self._built.shared or patient in self._shared.claims

    def _is_done(self, unit: str) -> bool:
        """Whether everything of a unit is on the server as the ledger's mark says."""
        names = {"server": self._run.server, "dataset": self._built.dataset, "unit": unit}
        if self._run.lake.fingerprint(OUTCOMES, **names) != self._mark(unit):
            return False
        for kind in self._run.lake.read(OUTCOMES, ["type"], **names)["type"].to_pylist():
            self._counts[kind, "unchanged"] += 1
        self._tell()
        return True

    def _part(self, unit: str) -> Part:
        if unit not in self._parts:
            self._parts[unit] = Part(unit, self._ledger(unit))
        return self._parts[unit]

    def _rows_of(self, folder: str, others: Collection[str]) -> dict[Key, Row]:
        """What the ledgers know of all units but some: of those that are sent anew, and of those that are gone."""
        found: dict[Key, Row] = {}
        for rows in self._ledgers_but(folder, others):
            found |= Ledger(rows, lambda *_: None).rows
        return found

    def _ledgers_but(self, folder: str, units: Collection[str]) -> Iterator[list[Row]]:
        """The rows of each ledger of the dataset but those of some units, which are not even opened."""
        known = {encode_name(unit) for unit in units}
        for name in self._run.lake.names(folder, ".parquet"):
            if name not in known:
                yield rows_at(self._run.lake.read_bytes(f"{folder}/{name}.parquet") or b"")

    def _candidate(self, resource: Resource, part: Part, **row: str | None) -> Candidate:
        """A candidate. What another unit's ledger knows of it comes along: a study moves when its folder is renamed."""
        candidate = candidate_of(resource, part, **row)
        before = self._moved.get(candidate.key)
        if before and before["unit"] != part.name and part.ledger.get(candidate.key) is None:
            part.ledger.note(before | candidate.row)
            part.ledger.save()  # before the other unit's is without it
        return candidate

    async def _bring_units(self, work: Sequence[str]) -> None:
        """Patients before the studies that refer to them; those of the next units go while studies are on their way."""
        size = self._run.fhir.max_concurrent_requests * self._run.fhir.max_bundle_entries
        slabs = [work[start : start + size] for start in range(0, len(work), size)]
        async with Flow(self._run, self._check_and_send) as studies:
            ahead = [asyncio.ensure_future(self._patients(slab)) for slab in slabs[:1]]
            try:
                for number, slab in enumerate(slabs, 1):
                    await ahead.pop()
                    ahead += [
                        asyncio.ensure_future(self._patients(following)) for following in slabs[number : number + 1]
                    ]
                    await self._studies(slab, studies)
            finally:
                await ended(ahead)

    # -- Patients

    async def _patients(self, work: Sequence[str]) -> None:
        async with Flow(self._run, self._send) as flow:
            for unit in work:
                part = self._part(unit)
                for candidate in self._own_patients(unit, part):
                    if part.wants(candidate, self._run.options):
                        await flow.add(candidate)

    def _own_patients(self, unit: str, part: Part) -> Iterator[Candidate]:
        """The Patients that this dataset has for itself and whose first unit this is."""
        ids = {
            patient
            for patient in self._built.patients.get(unit, ())
            if not self._is_shared(patient) and self._built.homes[patient][0] == unit
        }
        units = sorted({unit}.union(*(self._built.homes[patient] for patient in ids)))
        said: dict[str, list[Contribution]] = defaultdict(list)
        for one in units:
            for patient in self._built.resources("Patient", one):
                if patient["id"] in ids:
                    said[patient["id"]].append(Contribution(one, patient))
        for identity in sorted(said):
            whole = merged(said[identity])
            part.contradicted |= bool(whole.contradictions)
            self._findings += contradicting(self._built.dataset, identity, whole.contradictions, unit=unit)
            yield self._candidate(whole.patient, part, key=self._built.keys[identity], **self._where(unit))

    def _where(self, unit: str) -> dict[str, str | None]:
        return {"dataset": self._built.dataset, "unit": unit, "subject": self._built.subjects.get(unit)}

    async def _send(self, bundle: list[Candidate]) -> None:
        # not saved here: the studies of the same units follow, and what a kill takes with it is settled by a look
        await send_prepared(self._run, bundle, self._joined)

    async def _joined(self, bundle: list[Candidate]) -> list[Candidate]:
        """The Patients as they are to be sent, with what the server has of them."""
        bundle = await placed(self._run, bundle)
        client, ids = self._run.client, sorted(candidate.place[1] for candidate in bundle)
        there = await self._run.sender.ask(lambda: fetched(client, "Patient", ids))
        bundle = await with_lost(self._run, bundle)
        sendable = [one for candidate in bundle for one in joined(candidate, there.get(candidate.place[1]))]
        announce(sendable)
        return sendable

    # -- ImagingStudies

    async def _studies(self, work: Sequence[str], flow: Flow) -> None:
        for unit in work:
            part = self._part(unit)
            for study in self._built.resources("ImagingStudy", unit):
                candidate = self._study(study, unit, part)
                if part.wants(candidate, self._run.options) and not self._obstructed(candidate):
                    await flow.add(candidate)
            part.planned = True
            self._finish_if_done(part)

    def _study(self, study: Resource, unit: str, part: Part) -> Candidate:
        """The study as it is sent: it refers to what the server has under other ids by those."""
        patient = _referred(study["subject"])
        refers = _refers(study, patient)
        there = {key: self._place_on_server(key) for key in refers}
        study = study | {"subject": study["subject"] | {"reference": f"Patient/{there[refers[0]]}"}}
        if "endpoint" in study:
            study["endpoint"] = [{"reference": f"Endpoint/{there[key]}"} for key in refers[1:]]
        uid = _study_uid(study)
        row = next((one for one in self._built.studies.get(uid, ()) if one["unit"] == unit), None)
        where = self._where(unit) | ({"subject": row["subject"]} if row else {})
        return replace(self._candidate(study, part, key=uid, **where), refers=refers)

    def _place_on_server(self, key: Key) -> str:
        """The id under which the server has what a study refers to; ours, where nothing else is known."""
        if key[0] == "Patient" and self._is_shared(key[1]):
            return self._id_on_server(key[1]) or key[1]
        row = self._referred_row(key)
        return str(row["id_on_server"]) if row is not None and on_server(row) else key[1]

    def _obstructed(self, candidate: Candidate) -> bool:
        """Note why a study cannot be sent: something that it refers to is not on the server."""
        for key in candidate.refers:
            row = self._referred_row(key)
            if row is not None and on_server(row) and (row["state"] != "held" or key[0] == "Endpoint"):
                continue  # an Endpoint that somebody changed is there all the same
            name = "/".join(key)
            if row is not None and row["state"] == "held":
                code, _, text = row["error"].partition(": ")
                candidate.part.hold(candidate, code, text)
            elif row is not None and row["state"] == "rejected":
                candidate.part.leave(candidate, "rejected", f"not sent, since {name} was rejected", row["status"])
            else:
                why = self._run.sender.stopped or f"not sent, since {name} is not on the server yet; run again"
                candidate.part.leave(candidate, "gave-up", why)
            return True
        return False

    def _referred_row(self, key: Key) -> Row | None:
        kind, identity = key
        if kind == "Endpoint" or self._is_shared(identity):
            return self._shared.row(key)
        homes = self._built.homes.get(identity)
        if not homes:
            return None
        part = self._parts.get(homes[0])
        return (part.ledger if part else self._ledger(homes[0])).get(key)

    async def _check_and_send(self, bundle: list[Candidate]) -> None:
        await send_prepared(self._run, bundle, self._checked)
        for part in parts_of(bundle):
            if not self._finish_if_done(part):
                part.ledger.save_soon()
            await asyncio.sleep(0)  # the ledgers of a bundle take as long to write as the server a study

    async def _checked(self, bundle: list[Candidate]) -> list[Candidate]:
        """The studies that may be sent: nothing shrinks, and nothing of somebody else's is written over."""
        there = await self._run.sender.ask(lambda: look_up(self._run, bundle))
        bundle = await with_lost(self._run, [own_place(candidate, there[candidate.key]) for candidate in bundle])
        judged = [judge(candidate, there[candidate.key], self._run) for candidate in bundle]
        sendable = [candidate for candidate in judged if candidate is not None]
        announce(sendable)
        return sendable

    # -- the end of a unit

    def _finish_if_done(self, part: Part) -> bool:
        """Close a part of which nothing more is to come; says whether that was so."""
        if part.pending or not part.planned:
            return False
        part.planned = False
        self._close(part)
        if not self._run.options.dry_run:  # nothing was written that could be read again
            self._parts.pop(part.name, None)
        self._tell()
        return True

    def _close(self, part: Part) -> None:
        """Save the ledger of a unit. With the mark that nothing is to do, if nothing is, nor to be said again."""
        self._settle(part)
        rows = part.ledger.rows
        whole = part.made == set(rows) and all(map(_is_settled, rows.values()))
        part.ledger.save(self._mark(part.name) if whole and not part.waiting and not part.contradicted else "")
        if self._run.options.prune and any(row["state"] == "gone" for row in rows.values()):
            self._left.append(part)
        else:
            self._report(part)

    def _settle(self, part: Part) -> None:
        """Mark what the ledger has and the unit no longer makes."""
        for key, row in list(part.ledger.rows.items()):
            if key in part.made:
                continue
            fate = (
                self._fate_of_study(row, part.name)
                if key[0] == "ImagingStudy"
                else self._fate_of_patient(row, part.name)
            )
            if fate == "elsewhere":
                part.ledger.drop(key)
            elif fate == "held":
                text = "held-on-server: the study is held now; the server has its old state"
                part.ledger.note(row | {"state": "held", "error": text})
            elif fate == "gone":
                mark_gone(part.ledger, key)
            elif row["state"] == "gone":  # it is made again, and not to be deleted
                part.ledger.note(row | {"state": "stored", "error": None})

    def _fate_of_study(self, row: Row, unit: str) -> str:
        """gone, held, elsewhere: another unit builds it now, or here: until that other unit is built."""
        rows = self._built.studies.get(row["key"], ())
        if owners := {one["owner"] for one in rows if one["state"] != "held" and one["owner"] != unit}:
            return "here" if owners.isdisjoint(self._built.committed) else "elsewhere"
        # its files are there, so it is not gone: its person is undecided, or it could not be made as it must be
        return "held" if rows and (on_server(row) or may_be_there(row)) else "gone"

    def _fate_of_patient(self, row: Row, unit: str) -> str:
        """gone, here (claimed, though its resource could not be made), or elsewhere."""
        if row["id"] not in self._shared.claimed and row["id"] not in self._built.homes:
            return "gone"
        homes = self._built.homes.get(row["id"])
        if not homes or self._is_shared(row["id"]):
            return "elsewhere"
        return "here" if homes[0] == unit or homes[0] not in self._built.committed else "elsewhere"

    def _gone_units(self, folder: str) -> None:
        """Units of the ledger that the dataset no longer has."""
        for rows in self._ledgers_but(folder, self._built.units):
            unit = rows[0]["unit"]
            self._close(Part(unit, self._ledger(unit)))

    # -- removal

    async def _prune(self) -> None:
        """Delete what is gone: studies before the Patients that they refer to."""
        for kind in ("ImagingStudy", "Patient"):
            for part in self._left:
                for key, row in sorted(part.ledger.rows.items()):
                    if row["state"] == "gone" and key[0] == kind and await deleted(self._run, part.ledger, key):
                        self._removed.append("/".join(key))
                        self._counts[kind, word("deleted", self._run.options)] += 1
        for part in self._left:
            part.ledger.save()
            self._report(part)

    # -- what is said of it

    def _tell(self) -> None:
        self._done += 1
        self._run.progress(f"upload {self._built.dataset}", self._done, len(self._built.committed))

    def _report(self, part: Part) -> None:
        for key in part.ledger.rows.keys() | part.waiting:
            self._counts[key[0], state_of(part, key, self._run.options)] += 1
        self._findings += findings_of(part.ledger.rows.values(), self._built.dataset)

    def _shared_findings(self) -> list[Finding]:
        name, shared = self._built.dataset, self._shared
        found: list[Finding] = []
        for key in shared.keys(name):
            row = shared.row(key)
            # of a Patient that is held, its studies tell
            if row is not None and (row["state"] != "held" or key[0] == "Endpoint"):
                unit, subject = self._place_of(key[1])
                found += findings_of([row | {"unit": unit, "subject": subject}], name)
        for patient, contradictions in shared.contradictions.items():
            ours = tuple(one for one in contradictions if name in one.by)
            unit, subject = self._place_of(patient)
            found += contradicting(name, patient, ours, unit=unit, subject=subject)
        return found

    def _place_of(self, patient: str) -> tuple[str | None, str | None]:
        """Unit and subject of a Patient where they are one."""
        places = {
            (r["unit"], r["subject"])
            for r in self._shared.claims.get(patient, ())
            if r["dataset"] == self._built.dataset
        }
        return next(iter(places)) if len(places) == 1 else (None, None)

    def _all_findings(self) -> Any:
        return findings_table([*self._findings, *self._shared_findings()])

    def _write_findings(self) -> None:
        if not self._run.options.dry_run:
            table = self._all_findings()
            self._run.lake.write(DATASET_FINDINGS, table, stage="upload", dataset=self._built.dataset)

    def summary(self) -> Uploaded:
        """What was done, once everything is."""
        name, shared, run = self._built.dataset, self._shared, self._run
        removed = [key for dataset, key in shared.removed if dataset == name]
        if run.options.prune and not self.stopped:  # what is shared went, or not, after the findings were written
            try:
                with run.lake.lock(name, f"upload of {name}"):
                    self._write_findings()
            except LockHeldError as error:  # all is done, and what is left to say the next run says
                self.stopped = str(error)
        counts = self._counts + Counter((key[0], shared.state(key)) for key in shared.keys(name))
        counts += Counter((key[0], word("deleted", self._run.options)) for key in removed)
        by_type: dict[str, dict[str, int]] = defaultdict(dict)
        for (kind, state), number in sorted(counts.items()):
            by_type[kind][state] = number
        return Uploaded(
            name,
            run.server,
            dict(by_type),
            self._all_findings().num_rows,
            tuple(sorted([*self._removed, *("/".join(key) for key in removed)])),
            run.sender.unreachable,
            self.stopped or run.sender.stopped,
            run.options.dry_run,
        )


def _is_settled(row: Row) -> bool:
    """Whether nothing is to be said of a resource, in this run and in those that follow."""
    return row["state"] == "stored" and row["error"] is None and not row["linked"]


def _referred(reference: Mapping[str, Any]) -> str:
    """The id that a reference such as Patient/ID names."""
    return str(reference["reference"]).rpartition("/")[2]


def _refers(study: Resource, patient: str) -> tuple[Key, ...]:
    endpoints = [("Endpoint", _referred(endpoint)) for endpoint in study.get("endpoint", [])]
    return ("Patient", patient), *endpoints


def _study_uid(study: Resource) -> str:
    values = [i["value"] for i in study.get("identifier", []) if i.get("system") == "urn:dicom:uid"]
    return str(values[0]).removeprefix("urn:oid:") if values else str(study["id"])
