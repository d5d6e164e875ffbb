"""The ledger of a dataset as a table of the lake, for people who query it: written after each run, never read back."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pyarrow as pa

from dicom_etl.lake.schemas import UPLOAD_LEDGER
from dicom_etl.lake.tables import Lake
from dicom_etl.upload.ledger import Ledger

_PAGE = 20_000  # rows


async def export_ledger(lake: Lake, ledger: Ledger, dataset: str) -> None:
    """Write the rows of a dataset, unless the table has them already."""
    generation = await asyncio.wrap_future(ledger.read_generation(dataset))
    where = {"server": ledger.server, "dataset": dataset}
    if lake.fingerprint(UPLOAD_LEDGER, **where) == generation:
        return
    if generation.startswith("0 "):
        lake.remove(UPLOAD_LEDGER.path(**where))
        return
    lake.write_pieces(UPLOAD_LEDGER, _pages(ledger, dataset), fingerprint=generation, **where)


def _pages(ledger: Ledger, dataset: str) -> Iterator[pa.Table]:
    after = ("", "")
    while rows := ledger.read_page(dataset, after, _PAGE).result():
        columns = {name: [getattr(row, name) for row in rows] for name, _ in UPLOAD_LEDGER.fields if name != "server"}
        yield pa.Table.from_pydict({"server": [ledger.server] * len(rows)} | columns, schema=UPLOAD_LEDGER.schema)
        after = rows[-1].key
