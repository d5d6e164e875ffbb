"""What datasets share on a server: Endpoints, and Patients whose identifiers mean the same everywhere."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import orjson

from dicom_etl.identity.names import encode_name
from dicom_etl.lake.schemas import SHARED_OUTCOMES
from dicom_etl.server.transactions import Key
from dicom_etl.upload.built import SHARED_RULES, Built, announcement, by_column, others
from dicom_etl.upload.flowing import Flow, send_prepared
from dicom_etl.upload.ledger import Ledger, Row, on_server
from dicom_etl.upload.linking import Identifier, link_of, patients_with
from dicom_etl.upload.merging import Contradiction, Contribution, merged
from dicom_etl.upload.parts import Candidate, Part, announce, candidate_of, mark_gone, state_of
from dicom_etl.upload.patients import joined, placed
from dicom_etl.upload.pruning import deleted
from dicom_etl.upload.reconciling import fetched
from dicom_etl.upload.replaced import with_lost
from dicom_etl.upload.run import Run
from dicom_etl.upload.updating import updating

_LINK_CODES = {"contradicts": "patient-on-server", "ambiguous": "patient-ambiguous"}


class Shared:
    """Endpoints, and Patients of rules crosswalk and authority: one ledger, one writer."""

    def __init__(self, run: Run, ours: Sequence[Built]) -> None:
        self._run, self._ours = run, ours
        self._names = {built.dataset for built in ours}
        self._all: list[Built] = []
        self.claimed: set[str] = set()  # the Patients that some dataset makes
        self.claims: dict[str, list[Row]] = {}  # by Patient that datasets share, who has it
        self.endpoints: dict[str, str] = {}  # id -> dataset
        self.contradictions: dict[str, tuple[Contradiction, ...]] = {}
        self.removed: list[tuple[str, Key]] = []  # dataset, resource
        self._part = Part("shared", Ledger((), lambda *_: None), shared=True)

    def row(self, key: Key) -> Row | None:
        """The ledger's row of a shared resource."""
        return self._part.ledger.get(key)

    async def bring(self) -> None:
        """Bring what the datasets of this run share onto the server."""
        run = self._run
        with run.lake.lock(f"shared of {run.server}", f"upload to {run.server}"):
            run.lake.sweep(f"outcomes/{encode_name(run.server)}")
            self._gather()
            self._part.ledger = run.ledger(SHARED_OUTCOMES)
            for candidates in (self._endpoints(), self._patients()):
                async with Flow(run, self._job) as flow:
                    for candidate in candidates:
                        if self._part.wants(candidate, run.options):
                            await flow.add(candidate)
            self._mark_gone()
            self._part.ledger.save()

    def _gather(self) -> None:
        """Who has a say: our datasets and all that are on this server; ours say so before anything of them is there."""
        run = self._run
        new = (place for name in sorted(self._names) if not run.lake.exists(place := announcement(run.server, name)))
        for place in () if run.options.dry_run else new:
            run.lake.write_bytes(place, b"")
        self._all = sorted([*self._ours, *others(run, sorted(self._names))], key=lambda built: built.dataset)
        decided = [row for built in self._all for row in built.decided]
        self.claimed = {row["patient"] for row in decided}
        self.claims = by_column([row for row in decided if row["rule"] in SHARED_RULES], "patient")

    def _endpoints(self) -> Iterator[Candidate]:
        for built in self._ours:
            endpoint = built.endpoint()
            if endpoint and endpoint["id"] not in self.endpoints:
                self.endpoints[endpoint["id"]] = built.dataset
                key = endpoint.get("address") or endpoint["id"]
                yield candidate_of(endpoint, self._part, dataset=built.dataset, key=key)

    def _patients(self) -> Iterator[Candidate]:
        wanted = {p for p, rows in self.claims.items() if any(r["dataset"] in self._names for r in rows)}
        for patient, said in sorted(self._contributions(wanted).items()):
            row, claims = self.row(("Patient", patient)), self.claims[patient]
            before = orjson.loads(row["content"]) if row and row["content"] else None
            whole = merged(said, before)
            if whole.contradictions:
                self.contradictions[patient] = whole.contradictions
            key = f"{claims[0]['system']}|{claims[0]['value']}"
            dataset = min(claim["dataset"] for claim in claims)
            yield candidate_of(whole.patient, self._part, dataset=dataset, key=key)

    def _contributions(self, wanted: set[str]) -> dict[str, list[Contribution]]:
        said: dict[str, list[Contribution]] = defaultdict(list)
        for built in self._all:
            for unit in built.units:  # also one that is being built: what it said last still counts
                if not wanted.isdisjoint(built.patients.get(unit, ())):
                    for patient in built.resources("Patient", unit):
                        if patient["id"] in wanted:
                            said[patient["id"]].append(Contribution(built.dataset, patient))
        return said

    async def _job(self, bundle: list[Candidate]) -> None:
        await send_prepared(self._run, bundle, self._prepared)
        self._part.ledger.save_soon()

    async def _prepared(self, bundle: list[Candidate]) -> list[Candidate]:
        """What is to be sent of a bundle, with what the server has of it."""
        endpoints = [candidate for candidate in bundle if candidate.type == "Endpoint"]
        patients = [candidate for candidate in bundle if candidate.type == "Patient"]
        sendable = [*await self._endpoints_to_send(endpoints), *await self._patients_to_send(patients)]
        announce(sendable)
        return sendable

    async def _endpoints_to_send(self, endpoints: Sequence[Candidate]) -> list[Candidate]:
        """The Endpoints that the server has not as they are, and that nobody else changed."""
        endpoints = await placed(self._run, endpoints)
        there = await self._there("Endpoint", endpoints)
        sendable = []
        for candidate in endpoints:
            own = there.get(candidate.place[1])
            sent = updating(candidate, own, self.row(candidate.key), self._run) if own else candidate
            sendable += [sent] if sent else []
        return sendable

    async def _patients_to_send(self, patients: Sequence[Candidate]) -> list[Candidate]:
        """Link the Patients that the server has under another id; join ours with what it has of them."""
        patients = await placed(self._run, patients)
        asked = {c.key: self._identifier(c) for c in patients if self._may_be_foreign(c)}
        identifiers = sorted(set(asked.values()))
        client = self._run.client
        found = await self._run.sender.ask(lambda: patients_with(client, identifiers)) if asked else {}
        there = await self._there("Patient", [one for one in patients if one.key not in asked])
        patients = await with_lost(self._run, patients)
        sendable: list[Candidate] = []
        for candidate in patients:
            if candidate.key not in asked:
                sendable += joined(candidate, there.get(candidate.place[1]))
            else:
                sendable += self._linked(candidate, found[asked[candidate.key]])
        return sendable

    async def _there(self, kind: str, candidates: Sequence[Candidate]) -> dict[str, dict[str, Any]]:
        """The server's resources at the places of some candidates, by id."""
        ids, client = sorted(one.place[1] for one in candidates), self._run.client
        return await self._run.sender.ask(lambda: fetched(client, kind, ids)) if ids else {}

    def _linked(self, candidate: Candidate, found: list[dict[str, Any]]) -> list[Candidate]:
        """What is to be sent of a Patient that the server may have of somebody else."""
        is_ours = self._run.addressing.is_ours
        own = next((one for one in found if one["id"] == candidate.id or is_ours(one, candidate.id)), None)
        there = own["id"] if own else candidate.id
        link = link_of(candidate.resource | {"id": there}, found)
        if link.state == "linked":
            self._part.link(candidate, link)
            return []
        if link.state in _LINK_CODES:
            self._part.hold(candidate, _LINK_CODES[link.state], link.detail)
            return []
        remark = f"patient-appeared: {link.detail}" if link.state == "appeared" else None
        at = "" if there == candidate.id else there
        return joined(replace(candidate, remark=remark or candidate.remark, at=at), own)

    def _identifier(self, candidate: Candidate) -> Identifier:
        claim = self.claims[candidate.id][0]
        return Identifier(claim["system"], claim["value"])

    def _may_be_foreign(self, candidate: Candidate) -> bool:
        row = self.row(candidate.key)
        return row is None or not on_server(row) or row["linked"]

    def _mark_gone(self) -> None:
        """Mark what no dataset makes any more. Of other datasets' Endpoints nothing is known here."""
        ledger = self._part.ledger
        for key, row in list(ledger.rows.items()):
            kind, identity = key
            made = identity in (self.endpoints if kind == "Endpoint" else self.claimed)
            if made and identity in self.claimed and identity not in self.claims:
                ledger.drop(key)  # a dataset has it for itself now
            elif not made and row["dataset"] in self._names:
                mark_gone(ledger, key)

    async def prune(self) -> None:
        """Delete what is gone; the studies that referred to it went before."""
        run = self._run
        with run.lake.lock(f"shared of {run.server}", f"upload to {run.server}"):
            if not run.options.dry_run:  # another run may have claimed or brought something meanwhile
                self._part.ledger = run.ledger(SHARED_OUTCOMES)
                self._gather()
                self._mark_gone()
            for key, row in sorted(self._part.ledger.rows.items(), reverse=True):
                is_ours = row["state"] == "gone" and row["dataset"] in self._names
                if is_ours and await deleted(run, self._part.ledger, key):
                    self.removed.append((row["dataset"], key))
            self._part.ledger.save()

    def keys(self, dataset: str) -> Iterator[Key]:
        """The shared resources of a dataset, and those that were its and are gone."""
        for key, row in self._part.ledger.rows.items():
            claims = self.claims.get(key[1], ())
            made = self.endpoints.get(key[1]) == dataset or any(c["dataset"] == dataset for c in claims)
            if made or (row["state"] == "gone" and row["dataset"] == dataset):
                yield key

    def state(self, key: Key) -> str:
        """The state of a shared resource, as the summary names it."""
        return state_of(self._part, key, self._run.options)
