"""Checks of server and ledgers after two lakes were uploaded and killed; they use none of the tested code.

Each function yields a sentence for each problem.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pyarrow.parquet as pq
from psycopg.rows import dict_row

from tests.support import server_content
from tests.support.upload_lakes import Resource
from tests.upload.soak.kill_world import DATASET, KillWorld, LakeContent, text, uids
from tests.upload.soak.killed_uploads import Written

Row = dict[str, Any]
LOSSES = ("concurrent-overwrite", "changed-on-server", "update-removes-content")
_AT_ONCE = 20  # tokens in one search


# -- what there is ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LedgerContent:
    """The ledger of a lake: rows by Type/id, open attempts, and the findings of the upload as (code, study UID)."""

    rows: Mapping[str, Row]
    attempts: Sequence[Row]
    findings: frozenset[tuple[str, str | None]]


def read_ledger(root: str, ledger_url: str | None, lake_id: str) -> LedgerContent:
    """Read the ledger of a lake with the driver of its database."""
    if ledger_url is None:
        with closing(sqlite3.connect(Path(root, "ledger.sqlite"))) as connection:
            connection.row_factory = sqlite3.Row
            tables = [
                [dict(row) for row in connection.execute(f"SELECT * FROM {table} WHERE lake_id = ?", (lake_id,))]
                for table in ("resources", "attempts")
            ]
    else:
        with psycopg.connect(ledger_url.replace("+psycopg", ""), row_factory=dict_row) as connection:
            tables = [
                connection.execute(f"SELECT * FROM {table} WHERE lake_id = %s", (lake_id,)).fetchall()  # type: ignore[arg-type, misc]
                for table in ("resources", "attempts")
            ]
    file = Path(root, "findings", "upload", DATASET, "dataset.parquet")
    found = pq.read_table(file, columns=["code", "study_uid"]).to_pylist() if file.exists() else []
    rows = {f"{row['type']}/{row['id']}": row for row in tables[0]}
    return LedgerContent(rows, tables[1], frozenset((one["code"], one["study_uid"]) for one in found))


@dataclass(frozen=True)
class ServerContent:
    """The content of the server: the resources that searches find, and all their versions, oldest first.

    Keys are Type/id.
    """

    found: Mapping[str, Resource]
    versions: Mapping[str, Sequence[Resource]]
    counts: Mapping[tuple[str, str], int]  # by type and UID or identifier


def read_server(url: str, world: KillWorld) -> ServerContent:
    """Search for everything that both lakes may have produced, and read all histories."""
    tokens: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for number in world.study_ids().values():
        tokens["ImagingStudy"].append(("urn:dicom:uid", f"urn:oid:{world.factory.uid(number)}"))
    for rule, person in world.persons().values():
        system = (
            world.factory.authority if rule == "authority" else f"https://{world.factory.name}/{DATASET}/patient-id"
        )
        tokens["Patient"].append((system, person))
    found: dict[str, Resource] = {}
    counts: dict[tuple[str, str], int] = defaultdict(int)
    for kind, wanted in tokens.items():
        for start in range(0, len(wanted), _AT_ONCE):
            for resource in server_content.find_by_identifiers(url, kind, wanted[start : start + _AT_ONCE]):
                found[f"{kind}/{resource['id']}"] = resource
    for key, resource in found.items():
        kind = key.partition("/")[0]
        for one in resource["identifier"]:
            counts[kind, one["value"] if kind == "ImagingStudy" else f"{one['system']}|{one['value']}"] += 1
    endpoint = f"Endpoint/{world.factory.endpoint_id(DATASET)}"
    found |= {
        f"Endpoint/{one['id']}": one for one in server_content.search(url, f"Endpoint?_id={endpoint.partition('/')[2]}")
    }

    def read_versions(key: str) -> list[Resource]:
        # without _since, HAPI counts the versions of a history once a minute, and gives no more
        bundle = server_content.get(url, f"{key}/_history?_count=50&_since=1900-01-01T00:00:00Z")
        assert all(link["relation"] != "next" for link in bundle["link"]), f"{key} has more than 50 versions"
        return [entry["resource"] for entry in reversed(bundle["entry"])]

    with ThreadPoolExecutor(4) as pool:
        versions = dict(zip(found, pool.map(read_versions, found), strict=True))
    return ServerContent(found, versions, counts)


# -- what is wrong ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Checked:
    """The result of both lakes: contents, ledgers (in the order of `world.lakes`), server, and accepted writes."""

    world: KillWorld
    ledgers: tuple[LedgerContent, LedgerContent]
    server: ServerContent
    written: tuple[Sequence[Written], Sequence[Written]]

    @property
    def sides(self) -> list[tuple[LakeContent, LedgerContent]]:
        """Each lake with its ledger."""
        return list(zip(self.world.lakes, self.ledgers, strict=True))


def all_wrong(checked: Checked) -> Iterator[str]:
    """Everything that is not as it must be."""
    yield from resources_wrong(checked)
    for identity, number in checked.world.study_ids().items():
        if f"ImagingStudy/{identity}" in checked.server.versions:
            said = describe(checked, f"ImagingStudy/{identity}")
            yield from (f"study {number} ({said}): {one}" for one in study_wrong(checked, identity, number))
    for identity, key in checked.world.persons().items():
        if f"Patient/{identity}" in checked.server.versions:
            said = describe(checked, f"Patient/{identity}")
            yield from (f"Patient {key} ({said}): {one}" for one in patient_wrong(checked, identity, key))
    for lake, ledger in checked.sides:
        yield from (f"lake {lake.name}: {one}" for one in ledger_wrong(ledger))


def describe(checked: Checked, key: str) -> str:
    """A resource for messages: its versions, rows and writes."""
    rows = [
        f"{lake.name}: {ledger.rows[key]['state']} {ledger.rows[key]['version']} {ledger.rows[key]['reason']}"
        for lake, ledger in checked.sides
        if key in ledger.rows
    ]
    writes = [
        f"{lake.name}{one.status}{' killed' if one.is_killed else ''}"
        for lake, written in zip(checked.world.lakes, checked.written, strict=True)
        for one in written
        if one.key == key
    ]
    return f"{key}, {len(checked.server.versions[key])} versions, rows {rows}, writes {writes}"


def resources_wrong(checked: Checked) -> Iterator[str]:
    """Each resource is on the server once, under its id."""
    expected = {f"ImagingStudy/{one}" for one in checked.world.study_ids()}
    expected |= {f"Patient/{one}" for one in checked.world.persons()}
    expected.add(f"Endpoint/{checked.world.factory.endpoint_id(DATASET)}")
    yield from (f"{key} is not on the server" for key in sorted(expected - checked.server.found.keys()))
    yield from (f"{key} is on the server, and should not be" for key in sorted(checked.server.found.keys() - expected))
    for (kind, value), number in sorted(checked.server.counts.items()):
        if number != 1 and value != f"urn:uid:{DATASET}":
            yield f"{number} {kind} resources have the identifier {value}"
    for (lake, ledger), mine in zip(checked.sides, _produced(checked.world), strict=True):
        yield from (f"lake {lake.name} has no row of {key}" for key in sorted(mine - ledger.rows.keys()))
        yield from (f"lake {lake.name} has a row of {key}" for key in sorted(ledger.rows.keys() - mine))


def _produced(world: KillWorld) -> list[set[str]]:
    """The keys of the resources that each lake produces."""
    return [
        {f"ImagingStudy/{world.factory.study_id(DATASET, number)}" for number in lake.studies}
        | {f"Patient/{world.patient_id(key)}" for key in lake.stated}
        | {f"Endpoint/{world.factory.endpoint_id(DATASET)}"}
        for lake in world.lakes
    ]


def study_wrong(checked: Checked, identity: str, number: str) -> Iterator[str]:
    """The versions of a study, and its rows in both ledgers."""
    key = f"ImagingStudy/{identity}"
    versions = [server_content.without_meta(one) for one in checked.server.versions[key]]
    known = {text(one) for lake in checked.world.lakes for one in lake.contents.get(identity, ())}
    for place, version in enumerate(versions, 1):
        if text(version) not in known:
            yield f"version {place} is a content of no lake: {version}"
    yield from _lost(checked, key, number, versions)
    owners = [(lake, ledger) for lake, ledger in checked.sides if number in lake.studies]
    for lake, ledger in owners:
        if key in ledger.rows:
            yield from (f"lake {lake.name}: {one}" for one in _row_wrong(checked, lake, ledger, key, number))
    if len(owners) == 1:
        yield from _versions_wrong(owners[0][0], identity, number, versions)
        yield from _writes_wrong(checked, key)


def _lost(checked: Checked, key: str, number: str, versions: Sequence[Resource]) -> Iterator[str]:
    """Content that was on the server and no longer is, without a finding."""
    current = uids(versions[-1])
    for place, version in enumerate(versions, 1):
        missing = uids(version) - current
        if not missing or any(_has_reason(checked, ledger, key, number) for ledger in checked.ledgers):
            continue
        told = [
            (ledger.rows[key]["state"], ledger.rows[key]["version"]) for ledger in checked.ledgers if key in ledger.rows
        ]
        yield f"{len(missing)} UIDs of version {place} are not in the current one, and no row has a reason ({told})"


def _has_reason(checked: Checked, ledger: LedgerContent, key: str, number: str) -> bool:
    row = ledger.rows.get(key)
    if row is None or row["reason"] not in LOSSES:
        return False
    return (row["reason"], checked.world.factory.uid(number)) in ledger.findings


def _row_wrong(checked: Checked, lake: LakeContent, ledger: LedgerContent, key: str, number: str) -> Iterator[str]:
    row, versions = ledger.rows[key], checked.server.versions[key]
    current = server_content.without_meta(versions[-1])
    wanted = lake.contents[row["id"]][-1]
    numbers = {server_content.version(one): text(server_content.without_meta(one)) for one in versions}
    if row["state"] == "held":
        if not _has_reason(checked, ledger, key, number):
            yield f"held for {row['reason']}, and there is no such finding"
        if text(current) == text(wanted):
            yield f"held for {row['reason']}, and the server has it as it should be"
    elif row["state"] == "stored":
        if numbers.get(row["version"]) != text(wanted):
            yield f"stored as version {row['version']}, which has another content"
        if text(current) == text(wanted) and row["version"] != server_content.version(versions[-1]):
            later = [
                one for one in list(numbers.values())[list(numbers).index(row["version"]) + 1 :] if one != text(wanted)
            ]
            if not later:
                current_version = server_content.version(versions[-1])
                yield f"stored as version {row['version']}, and the current one is {current_version}"
        if text(current) != text(wanted) and not _is_of_other(checked, lake, row["id"], text(current)):
            yield "the server has neither this content nor one of the other lake"
    else:
        yield f"state {row['state']}: {row['reason_text']}"


def _is_of_other(checked: Checked, lake: LakeContent, identity: str, content: str) -> bool:
    others = [other for other in checked.world.lakes if other is not lake]
    return any(content == text(one) for other in others for one in other.contents.get(identity, ()))


def _versions_wrong(lake: LakeContent, identity: str, number: str, versions: Sequence[Resource]) -> Iterator[str]:
    """A study of one lake has as many versions as contents were sent."""
    contents = [text(one) for one in lake.contents[identity]]
    contents = contents[:1] if number in lake.shrunk else contents
    if [text(one) for one in versions] != contents:
        known = {one: place for place, one in enumerate(contents)}
        yield f"versions {[known.get(text(one)) for one in versions]} of {len(contents)} contents of lake {lake.name}"


def _writes_wrong(checked: Checked, key: str) -> Iterator[str]:
    """Nothing is sent again that the server has: it would be a new version on other servers."""
    sent = [text(one.resource) for written in checked.written for one in written if one.key == key]
    again = [one for place, one in enumerate(sent) if one in sent[:place]]
    if again:
        yield f"{len(again)} of {len(sent)} writes repeated what the server had"


# -- Patients ---------------------------------------------------------------------------------------------------------


def patient_wrong(checked: Checked, identity: str, key: tuple[str, str]) -> Iterator[str]:
    """A Patient has the values of both lakes, by the rules for conflicts, and never had any other."""
    place = f"Patient/{identity}"
    stated = [lake.stated[key] for lake in checked.world.lakes if key in lake.stated]
    ever = [one for lake in checked.world.lakes for one in lake.statements.get(key, ())]
    versions = [server_content.without_meta(one) for one in checked.server.versions[place]]
    for number, version in enumerate(versions, 1):
        yield from (f"version {number}: {one}" for one in _unknown_elements(version, ever))
    current = versions[-1]
    for element in ("name", "telecom"):
        wanted = sorted({text(item) for one in stated for item in one.get(element, ())})
        if sorted(text(item) for item in current.get(element, ())) != wanted:
            yield f"{element} is {current.get(element)}, and should be {wanted}"
    births = [one["birthDate"] for one in stated]
    if current.get("birthDate") != max(births, key=len):
        yield f"birthDate is {current.get('birthDate')} of {births}"
    for element in ("gender", "maritalStatus"):
        values = [text(one[element]) for one in stated if element in one]
        if (text(current[element]) if element in current else None) not in (values or [None]):
            yield f"{element} is {current.get(element)} of {values}"
    for lake, ledger in checked.sides:
        if key in lake.stated and place in ledger.rows:
            differs = "gender" in lake.stated[key] and lake.stated[key]["gender"] != current.get("gender")
            yield from _patient_row_wrong(lake, ledger.rows[place], checked.server.versions[place], differs=differs)


def _patient_row_wrong(lake: LakeContent, row: Row, versions: Sequence[Resource], *, differs: bool) -> Iterator[str]:
    if row["state"] != "stored":
        yield f"lake {lake.name}: state {row['state']}: {row['reason_text']}"
    if differs and row["reason"] != "patient-conflict":
        yield f"lake {lake.name}: its gender is not on the server, and the reason of its row is {row['reason']}"
    if row["version"] not in {server_content.version(one) for one in versions}:
        yield f"lake {lake.name}: its row has version {row['version']}, which is not in the history"


def _unknown_elements(version: Resource, ever: Sequence[Resource]) -> Iterator[str]:
    for element, value in version.items():
        if element in ("resourceType", "id", "identifier"):
            continue
        items = value if isinstance(value, list) else [value]
        said = [
            item for one in ever for item in (one.get(element) if isinstance(value, list) else [one.get(element)]) or []
        ]
        yield from (f"{element} {item} is of no lake" for item in items if item not in said)


# -- ledgers ----------------------------------------------------------------------------------------------------------


def ledger_wrong(ledger: LedgerContent) -> Iterator[str]:
    """No attempt stays open, except of a resource that is held because it may have arrived."""
    for attempt in ledger.attempts:
        row = ledger.rows.get(f"{attempt['type']}/{attempt['id']}")
        if row is None or (row["state"], row["reason"]) != ("held", "changed-on-server"):
            said = f"{row['state']} {row['reason']}" if row else "no row"
            yield f"an attempt of {attempt['type']}/{attempt['id']} is open ({said})"


def stale_studies(checked: Checked, lake: LakeContent, ledger: LedgerContent) -> list[str]:
    """The numbers of studies that the other lake changed after this one had stored them."""
    numbers = checked.world.study_ids()
    stale = []
    for key, row in ledger.rows.items():
        if row["type"] == "ImagingStudy" and row["state"] == "stored" and key in checked.server.versions:
            current = checked.server.versions[key][-1]
            is_other = text(server_content.without_meta(current)) != text(lake.contents[row["id"]][-1])
            if is_other and row["version"] != server_content.version(current):
                stale.append(numbers[row["id"]])
    return stale
