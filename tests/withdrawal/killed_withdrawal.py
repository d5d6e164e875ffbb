"""Runs a withdrawal and kills itself (SIGKILL) at the n-th event: before or after a rename in the lake, a removal,
a deletion on the server or in the ledger. Without n (-1) it writes the list of events.

Usage: killed_withdrawal.py EVENTS N LAKE URL NAMESPACE DATASET SUBJECT
"""

import os
import signal
import sys
from pathlib import Path

from dicom_etl.fhir_client import FhirClient
from dicom_etl.lake.tables import Lake
from dicom_etl.settings import FhirSettings, Settings
from dicom_etl.stages.withdraw import withdraw
from dicom_etl.upload.deletion import LedgerWithdrawal

WHEN = int(sys.argv[2])
seen: list[str] = []


def record_event(event: str) -> None:
    if len(seen) == WHEN:
        os.kill(os.getpid(), signal.SIGKILL)
    seen.append(event)


def rename(self: Path, target: Path, real=Path.replace) -> Path:
    path = "/".join(target.parts[-4:])
    record_event(f"before {path}")
    moved = real(self, target)
    record_event(f"after {path}")
    return moved


def remove(self: Lake, path: str, real=Lake.remove) -> None:
    record_event(f"remove {path}")
    real(self, path)


async def delete(self: FhirClient, kind: str, identity: str, real=FhirClient.delete):
    record_event(f"delete {kind}")
    return await real(self, kind, identity)


def drop(self: LedgerWithdrawal, real=LedgerWithdrawal.delete_rows) -> None:
    record_event("before the ledger")
    real(self)
    record_event("after the ledger")


if __name__ == "__main__":
    Path.replace = rename  # type: ignore[method-assign]
    Lake.remove = remove  # type: ignore[method-assign]
    FhirClient.delete = delete  # type: ignore[method-assign]
    LedgerWithdrawal.delete_rows = drop  # type: ignore[method-assign]
    _, events, _, root, url, namespace, dataset, subject = sys.argv
    withdraw(dataset, subject, Lake(root), Settings(namespace=namespace, fhir=FhirSettings(url=url)))
    Path(events).write_text("\n".join(seen))
