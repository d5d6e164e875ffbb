"""Ledgers beside what the server says: what is missing there, was changed, is foreign, or was never sent.

The server is only asked: lists of `_id` with `_elements=meta`, and a search for the studies that carry a dataset's
identifier. To repair is to forget, in the ledger, what the server does not have; the upload then sends it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

from dicom_etl.identity.names import encode_name
from dicom_etl.lake.schemas import OUTCOMES, RESOURCE_TYPES, SHARED_OUTCOMES, STORED_BY_UNIT, Table
from dicom_etl.lake.tables import Lake
from dicom_etl.server.client import Client, escaped
from dicom_etl.server.searching import searched
from dicom_etl.server.sending import Sender
from dicom_etl.server.transactions import Key
from dicom_etl.upload.built import Built, rows_at
from dicom_etl.upload.ledger import Ledger, Row, on_server

DIFFERENCES = ("missing", "changed", "foreign", "unsent")
_AT_ONCE = 50  # ids in one search: its URL stays below 2,000 characters
_PAGE = 500  # studies on one page of a search; a server may give fewer

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Difference:
    """A resource of which lake, ledger and server do not say the same; `what` is one of `DIFFERENCES`."""

    what: str
    resource: str  # Type/id
    unit: str | None
    said: str


@dataclass(frozen=True)
class Compared:
    """A dataset (None: what datasets share): how many resources are `ok`, `left` or different, and those that differ.

    `left` are on the server as the ledger says, and the lake does not make them now.
    """

    dataset: str | None
    counts: Mapping[str, int]
    differences: tuple[Difference, ...] = ()


class Verifier:
    """Compares the ledgers of one server with it, each under its lock; with `repair`, they forget what is missing."""

    def __init__(
        self, lake: Lake, client: Client, sender: Sender, server: str, *, repair: bool, progress: Progress
    ) -> None:
        self._lake, self._client, self._sender, self._server = lake, client, sender, server
        self._repair, self._progress = repair, progress

    async def shared(self, datasets: Sequence[Built]) -> Compared:
        """Compare what these datasets share with others.

        Raises:
            FhirError: the server could not be asked.
            LockHeldError: an upload goes on.
        """
        server = self._server
        with self._lake.lock(f"shared of {server}", f"verify of {server}"):
            ledger = self._ledger(SHARED_OUTCOMES)
            made = {key: unit for one in datasets for key, unit in made_by(one).items() if _is_shared(key, one, ledger)}
            names = {built.dataset for built in datasets}
            # of what only other datasets make, nothing is known here
            rows = [
                row
                for key, row in ledger.rows.items()
                if key in made or (row["state"] == "gone" and row["dataset"] in names)
            ]
            there = await self._there(rows, "verify what datasets share")
            self._forget([ledger], _lost(rows, there), made)
            return compared(None, rows, there, made)

    async def dataset(self, name: str, system: str) -> Compared:
        """Compare what a dataset has for itself; `system` is that of the identifier by which studies name it.

        Raises:
            FhirError: the server could not be asked.
            LockHeldError: a stage of the dataset goes on.
            NotBuiltError: it has no resources.
        """
        with self._lake.lock(name, f"verify of {name}"):
            built = Built.of(self._lake, name)
            shared = self._ledger(SHARED_OUTCOMES)
            made = {key: unit for key, unit in made_by(built).items() if not _is_shared(key, built, shared)}
            ledgers = list(self._ledgers(built))
            rows = [row for ledger in ledgers for row in ledger.rows.values()]
            there = await self._there(rows, f"verify {name}")
            carrying = await self._found(
                "ImagingStudy", identifier=f"{escaped(system)}|{escaped(f'urn:uid:{name}')}", _count=str(_PAGE)
            )
            self._forget(ledgers, _lost(rows, there), made)
            unfinished = set(built.units) - set(built.committed)
            return compared(name, rows, there, made, unfinished=unfinished, carrying=carrying)

    # -- the lake

    def _ledger(self, table: Table, **names: str) -> Ledger:
        names["server"] = self._server

        def write(rows: list[Row], mark: str) -> None:
            self._lake.write_rows(table, rows, fingerprint=mark, **names)

        rows = self._lake.read(table, None, **names).to_pylist()
        return Ledger(rows, write, self._lake.fingerprint(table, **names) or "")

    def _ledgers(self, built: Built) -> Iterator[Ledger]:
        """The ledgers of all units, also of those that the dataset no longer has."""
        folder = f"outcomes/{encode_name(self._server)}/{encode_name(built.dataset)}"
        known = {encode_name(unit): unit for unit in built.units}
        for name in self._lake.names(folder, ".parquet"):
            unit = known.get(name) or rows_at(self._lake.read_bytes(f"{folder}/{name}.parquet") or b"")[0]["unit"]
            yield self._ledger(OUTCOMES, dataset=built.dataset, unit=unit)

    def _forget(self, ledgers: Iterable[Ledger], lost: Collection[Key], made: Collection[Key]) -> None:
        """Note that the server does not have some resources; a unit's mark, which says that it has all, goes too."""
        if not self._repair:
            return
        for ledger in ledgers:
            if keys := ledger.rows.keys() & lost:
                for key in keys:
                    ledger.note(_forgotten(ledger.rows[key], is_made=key in made))
                ledger.save()

    # -- the server

    async def _there(self, rows: Sequence[Row], doing: str) -> dict[Key, str]:
        """The server's versions of those resources that it should have, by place; what it has not is left out."""
        places = {_place(row) for row in rows if on_server(row)}
        found: dict[Key, str] = {}
        done = 0
        for kind in RESOURCE_TYPES:
            ids = sorted(identity for one, identity in places if one == kind)
            for start in range(0, len(ids), _AT_ONCE):
                some = ids[start : start + _AT_ONCE]
                versions = await self._found(kind, _id=",".join(some), _count=str(len(some)))
                found |= {(kind, one): versions[one] for one in some if one in versions}
                done += len(some)
                self._progress(doing, done, len(places))
        return found

    async def _found(self, kind: str, **search: str) -> dict[str, str]:
        """The versions of all that a search finds, by id; empty where the server names none."""
        params = search | {"_elements": "meta"}
        first = partial(self._client.execute, kind, method="get", params=params)
        resources = await searched(self._client, kind, first, self._sender.ask)
        return {str(one["id"]): str(one.get("meta", {}).get("versionId", "")) for one in resources}


# -- comparing --------------------------------------------------------------------------------------------------------


def made_by(built: Built) -> dict[Key, str]:
    """The resources of a dataset's units whose build is complete, and a unit of each."""
    made: dict[Key, str] = {}
    endpoint = built.endpoint()
    if endpoint and built.committed:
        made["Endpoint", endpoint["id"]] = built.committed[0]
    for unit in built.committed:
        for kind in STORED_BY_UNIT:
            for resource in built.resources(kind, unit):
                if kind != "Patient" or resource["id"] in built.homes:
                    made.setdefault((kind, resource["id"]), unit)
    return made


def _is_shared(key: Key, built: Built, ledger: Ledger) -> bool:
    """Whether the ledger of what datasets share has a resource: another dataset may be why."""
    return key[0] == "Endpoint" or key[1] in built.shared or ledger.get(key) is not None


def compared(
    dataset: str | None,
    rows: Sequence[Row],
    there: Mapping[Key, str],
    made: Mapping[Key, str],
    *,
    unfinished: Collection[str] = (),
    carrying: Collection[str] = (),
) -> Compared:
    """What ledger, server and lake say of the same resources.

    Args:
        dataset: its name; None for what datasets share.
        rows: of the ledger.
        there: the server's versions of those that it has, by place.
        made: the resources that the lake makes, and a unit of each.
        unfinished: units that are being built: what they make is not known.
        carrying: ids of the server's studies that carry the dataset's identifier.
    """
    standings = [(row, _standing(row, there, is_made=_key(row) in made or row["unit"] in unfinished)) for row in rows]
    found = [_told(row, what, there) for row, what in standings if what in ("missing", "changed")]
    missing = {_key(row) for row, what in standings if what == "missing"}
    found += _unsent(made, {_key(row): row for row in rows}, missing)
    found += _foreign(carrying, rows, made)
    counts = Counter([what for _, what in standings if what in ("ok", "left")] + [one.what for one in found])
    return Compared(dataset, {what: counts[what] for what in ("ok", *DIFFERENCES, "left")}, tuple(found))


def _standing(row: Row, there: Mapping[Key, str], *, is_made: bool) -> str | None:
    """ok, left, missing or changed; None where that is no question, or is one of sending."""
    if not on_server(row):
        return None
    version = there.get(_place(row))
    if version is None:
        return "missing" if is_made or row["state"] != "gone" else None  # nobody misses what is gone
    if not row["linked"] and row["version"] and version and version != row["version"]:
        return "changed"
    if not is_made:
        return "left"
    return "ok" if _is_stored(row) else None


def _unsent(made: Mapping[Key, str], rows: Mapping[Key, Row], missing: Collection[Key]) -> Iterator[Difference]:
    for key, unit in made.items():
        row = rows.get(key)
        if key not in missing and not _is_stored(row):
            yield Difference("unsent", "/".join(key), unit, row["state"] if row else "never sent")


def _foreign(carrying: Collection[str], rows: Iterable[Row], made: Iterable[Key]) -> Iterator[Difference]:
    """The studies of the dataset that neither the ledger knows nor the lake makes."""
    ours = {identity for _, identity in made} | {row[name] for row in rows for name in ("id", "id_on_server")}
    for identity in sorted(set(carrying) - ours):
        yield Difference("foreign", f"ImagingStudy/{identity}", None, "this lake did not send it")


def _told(row: Row, what: str, there: Mapping[Key, str]) -> Difference:
    place = _place(row)
    if what == "changed":
        said = f"version {there[place]}, and the ledger has {row['version']}: somebody else has changed it"
    elif row["linked"]:
        said = f"the server's own, which is used for {'/'.join(_key(row))}"
    else:
        said = "the ledger has it as stored"
    return Difference(what, "/".join(place), row["unit"], said)


def _is_stored(row: Row | None) -> bool:
    """Whether the server has a resource that the lake makes; one that was gone and is made again is there, too."""
    return row is not None and on_server(row) and row["state"] in ("stored", "gone")


def _lost(rows: Iterable[Row], there: Collection[Key]) -> set[Key]:
    return {_key(row) for row in rows if on_server(row) and _place(row) not in there}


def _forgotten(row: Row, *, is_made: bool) -> Row:
    """The row of a resource that the server does not have. Until it is sent again, it counts as one that failed."""
    row = row | {"version": None, "time": datetime.now(UTC)}
    if is_made and row["state"] == "stored":
        row |= {"state": "gave-up", "error": "the server no longer has it; run again"}
    return row


def _key(row: Row) -> Key:
    return row["type"], row["id"]


def _place(row: Row) -> Key:
    """Where the server has it: under its own id where it gave one, or where the resource is somebody else's."""
    return row["type"], row["id_on_server"] or row["id"]
