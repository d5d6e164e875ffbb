"""What leaves a server with a withdrawn subject or dataset: found in its ledger, deleted, and taken out of the ledger.

What the server has under the ids that we give goes, also what another lake of this site wrote there. Somebody else's
resource that we refer to or added to stays, and so does a Patient of ours to whom other studies of the lake refer. Not
here: who is withdrawn, and what the lake loses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import unquote

from dicom_etl.identity.names import encode_name
from dicom_etl.lake.schemas import OUTCOMES, SHARED_OUTCOMES, Table
from dicom_etl.lake.tables import Lake
from dicom_etl.server.errors import FhirError, ServerError
from dicom_etl.server.sending import Sender
from dicom_etl.server.transactions import Key
from dicom_etl.upload.built import announcement, rows_at
from dicom_etl.upload.ledger import Ledger, Row, may_be_there, on_server

_ORDER = ("ImagingStudy", "Patient", "Endpoint")  # what refers to others goes first


@dataclass(frozen=True)
class Leaving:
    """What is withdrawn, as the ledgers know it.

    `unit` is None for the whole dataset; `studies` are those that lie in it, also partly; `patients` those of its
    studies, `needed` those of all other studies of the lake. `is_all`: nothing of the dataset stays.
    """

    dataset: str
    unit: str | None
    studies: frozenset[str]
    patients: frozenset[str]
    needed: frozenset[str]
    is_all: bool

    def takes(self, row: Row, unit: str | None) -> bool:
        """Whether a row of the ledger of a unit, or (None) of what datasets share, leaves the ledger."""
        if unit is not None:
            own = self.unit is None or unit == self.unit
            return own or (row["type"] == "ImagingStudy" and row["key"] in self.studies)
        if row["type"] == "Endpoint":
            return self.is_all and bool(row["dataset"] == self.dataset)
        mine = row["id"] in self.patients or (self.unit is None and row["dataset"] == self.dataset)
        return mine and row["id"] not in self.needed

    def deletes(self, row: Row) -> bool:
        """Whether what a row that leaves speaks of is to be deleted from the server."""
        is_needed = row["type"] == "Patient" and row["id"] in self.needed
        return not row["linked"] and not is_needed and (on_server(row) or may_be_there(row))


@dataclass
class Holding:
    """What a server has of what leaves: by place (`Type/id` there), and what only it can say.

    `unsure` are resources of ours of which we do not know whether it has them, by our id; `foreign` are somebody
    else's studies that our series stand in.
    """

    places: set[str] = field(default_factory=set)
    unsure: set[Key] = field(default_factory=set)
    foreign: set[str] = field(default_factory=set)
    stays: int = 0  # Patients that others need


class Deleted(NamedTuple):
    """What became of places: deleted, needed there by others (409), and the first other refusal."""

    done: set[str]
    needed: set[str]
    refused: FhirError | None = None
    is_unreachable: bool = False


def servers(lake: Lake) -> list[str]:
    """The servers that the lake has ledgers of."""
    return [unquote(name) for name in lake.names("outcomes")]


class Ledgers:
    """The ledgers of a server as far as a withdrawal concerns them."""

    def __init__(self, lake: Lake, server: str, leaving: Leaving) -> None:
        self._lake, self._server, self._leaving = lake, server, leaving
        self._folder = f"outcomes/{encode_name(server)}/{encode_name(leaving.dataset)}"

    def knows_dataset(self) -> bool:
        """Whether there is anything of the dataset."""
        shared = self._ledger(SHARED_OUTCOMES).rows.values()
        mine = any(row["dataset"] == self._leaving.dataset for row in shared)
        return mine or bool(self._lake.names(self._folder, ".parquet"))

    def keys(self) -> set[Key]:
        """All resources that these ledgers know."""
        return {key for _, ledger in self._all() for key in ledger.rows}

    def holding(self) -> Holding:
        """What the server has of what leaves, as far as the ledgers say."""
        found = Holding()
        for unit, ledger in self._all():
            for row in ledger.rows.values():
                if unit is None and row["id"] in self._leaving.patients & self._leaving.needed:
                    found.stays += not row["linked"]
                elif self._leaving.takes(row, unit):
                    self._note(row, found)
        return found

    def _note(self, row: Row, found: Holding) -> None:
        if row["linked"] and row["type"] == "ImagingStudy":
            found.foreign.add(f"ImagingStudy/{row['id_on_server']}")
        elif self._leaving.deletes(row) and on_server(row):
            found.places.add(f"{row['type']}/{row['id_on_server'] or row['id']}")
        elif self._leaving.deletes(row):
            found.unsure.add((row["type"], row["id"]))

    def drop(self) -> None:
        """Take out of the ledgers what leaves. A unit of which something went is looked at again by the next upload."""
        self._lake.sweep(self._folder)
        self._lake.sweep(self._folder.rpartition("/")[0])
        for unit, ledger in self._all():
            gone = [key for key, row in ledger.rows.items() if self._leaving.takes(row, unit)]
            for key in gone:
                ledger.drop(key)
            if gone:
                ledger.save()
        if self._leaving.is_all:
            self._lake.remove(announcement(self._server, self._leaving.dataset))

    def _all(self) -> Iterator[tuple[str | None, Ledger]]:
        yield None, self._ledger(SHARED_OUTCOMES)
        for name in self._lake.names(self._folder, ".parquet"):
            for row in rows_at(self._lake.read_bytes(f"{self._folder}/{name}.parquet") or b"")[:1]:
                yield row["unit"], self._ledger(OUTCOMES, dataset=self._leaving.dataset, unit=row["unit"])

    def _ledger(self, table: Table, **names: str) -> Ledger:
        names["server"] = self._server

        def write(rows: list[Row], mark: str) -> None:
            if rows:
                self._lake.write_rows(table, rows, fingerprint=mark, **names)
            else:
                self._lake.remove(table.path(**names))

        return Ledger(self._lake.read(table, None, **names).to_pylist(), write)


async def deleted(sender: Sender, places: Iterable[str]) -> Deleted:
    """Delete resources, studies before what they refer to; ends at the first refusal that is no 409."""
    done, needed = set(), set()
    for place in sorted(places, key=lambda place: (_ORDER.index(place.partition("/")[0]), place)):
        kind, _, identity = place.partition("/")
        error = await sender.delete(kind, identity)
        if error is None:
            done.add(place)
        elif isinstance(error, ServerError) and error.status == 409:
            needed.add(place)
        else:
            return Deleted(done, needed, error, sender.unreachable)
    return Deleted(done, needed)
