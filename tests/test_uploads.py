"""The resources that are not stored as they should be: `uploads`, and `upload --failed`, which sends them again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest

from dicom_etl.inspection.status import read_dataset_status
from dicom_etl.inspection.uploads import list_uploads
from dicom_etl.lake.fingerprints import compute_fingerprint
from dicom_etl.lake.schemas import INVENTORY
from dicom_etl.lake.tables import Lake
from dicom_etl.pipeline import RunResult
from dicom_etl.stages.upload import UploadSummary
from dicom_etl.stages.verify import DIFFERENCES, Comparison, VerificationResult
from dicom_etl.upload.ledger import Ledger, ResourceRow, State
from tests.servers.hapi_server import HapiServer
from tests.support.command import RunCommand
from tests.support.datasets import write_instance
from tests.support.proxy import Proxy, ReceivedRequest, Reply, run_proxy
from tests.support.upload_lakes import new_lake

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)


@pytest.fixture
def server(hapi: HapiServer) -> Iterator[Proxy]:
    with run_proxy(hapi.base_url) as counted:
        yield counted


def row(kind: str, identity: str, state: str, hours: int = 0, **more: Any) -> ResourceRow:
    is_shared = kind == "Endpoint"
    known = {
        "dataset": "A",
        "unit": None if is_shared else "sub-1",
        "subject": None if is_shared else "sub-1",
        "server_id": identity if state in ("stored", "orphaned") else None,
        "version": "1" if state in ("stored", "orphaned") else None,
        "http_status": 201 if state == "stored" else None,
        "attempts": 1,
        "time": NOON + timedelta(hours=hours),
    }
    return ResourceRow(kind, identity, **known | more, state=State(state))


def note(lake: Lake, *rows: ResourceRow) -> None:
    with Ledger.from_lake(lake, "s") as ledger:
        ledger.write_rows(rows)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """Dataset A with a resource in each state on one server, and B with nothing there."""
    lake = new_lake(tmp_path / "lake")
    file = {"subject": "sub-1", "sample": None, "role": "primary", "path": "a.dcm", "size": 1, "mtime": NOON}
    for name in ("A", "B"):
        lake.write_rows(INVENTORY, [file | {"dataset": name, "unit": "sub-1"}], dataset=name)
    unknown_code = {"reason": "upload-rejected", "reason_text": "HTTP 400: invalid: Unknown code"}
    unavailable = {"reason": "upload-failed", "reason_text": "HTTP 503: Service Unavailable"}
    no_answer = {"reason": "upload-unconfirmed", "reason_text": "no answer within 600 s"}
    note(
        lake,
        row("ImagingStudy", "s1", "stored"),
        row("ImagingStudy", "s2", "rejected", 1, http_status=400, **unknown_code),
        row("ImagingStudy", "s3", "unconfirmed", 4, attempts=3, **no_answer),
        row("ImagingStudy", "s4", "failed", 2, http_status=503, **unavailable),
        row("Patient", "p1", "held", 3, reason="patient-ambiguous", reason_text="Patient/x, Patient/y"),
        # a unit that the dataset no longer has
        row("ImagingStudy", "s5", "orphaned", 5, unit="sub-9", subject="sub-9"),
        row("Endpoint", "e1", "stored"),
        row("Endpoint", "e2", "rejected", dataset="C"),
    )
    return lake


def test_unfinished_resources_are_listed_newest_first(lake: Lake) -> None:
    found = list_uploads(lake, "A")

    assert [(sent.state, sent.resource) for sent in found.listed] == [
        ("orphaned", "ImagingStudy/s5"),
        ("unconfirmed", "ImagingStudy/s3"),
        ("held", "Patient/p1"),
        ("failed", "ImagingStudy/s4"),
        ("rejected", "ImagingStudy/s2"),
    ]
    assert found.counts == {"stored": 2, "unconfirmed": 1, "rejected": 1, "failed": 1, "held": 1, "orphaned": 1}
    last = found.listed[-1]
    assert (last.server, last.unit, last.subject, last.status, last.attempts) == ("s", "sub-1", "sub-1", 400, 1)
    assert last.reason == "upload-rejected: HTTP 400: invalid: Unknown code"
    assert last.time == NOON + timedelta(hours=1)


def test_the_status_counts_shared_resources_too(lake: Lake) -> None:
    note(lake, row("Endpoint", "e1", "held"))

    assert read_dataset_status(lake, "A").uploads == (
        ("s", "failed", 1),
        ("s", "held", 2),
        ("s", "orphaned", 1),
        ("s", "rejected", 1),
        ("s", "stored", 1),
        ("s", "unconfirmed", 1),
    )


def test_an_unconfirmed_resource_makes_the_exit_code_1() -> None:
    uploaded = UploadSummary("A", "s", {"ImagingStudy": {"unconfirmed": 1, "stored": 5}})
    outcome = RunResult()
    outcome.add("upload", "A", uploaded)

    assert outcome.exit_code == 1
    same = Comparison("A", dict.fromkeys(DIFFERENCES, 0))
    assert VerificationResult("s", (same,), {}, (uploaded,)).exit_code == 1


@pytest.mark.parametrize(
    ("states", "ids"),
    [(["stored"], ["e1", "s1"]), (["rejected", "failed"], ["s4", "s2"]), (["unchanged"], [])],
    ids=str,
)
def test_only_the_requested_states_are_listed(lake: Lake, states: list[str], ids: list[str]) -> None:
    assert [sent.resource.partition("/")[2] for sent in list_uploads(lake, "A", states).listed] == ids


def test_the_command_lists_them_and_the_command_that_retries(run_command: RunCommand, lake: Lake) -> None:
    code, out, _ = run_command("uploads", "--lake", lake.root)
    assert code == 0
    for words in (
        "ImagingStudy/s2",
        "HTTP 400: invalid: Unknown code",
        "2024-05-01 13:00:00",
        "dicom-etl upload --failed",
    ):
        assert words in out
    assert "A: 2 stored, 1 unconfirmed, 1 rejected, 1 failed, 1 held, 1 orphaned" in out
    assert "B: nothing was uploaded" in out

    code, out, _ = run_command("uploads", "A", "--state", "rejected", "--lake", lake.root, "--json")
    machine = json.loads(out)
    assert code == 0
    assert list(machine["datasets"]) == ["A"]
    [one] = machine["datasets"]["A"]["listed"]
    assert (one["resource"], one["status"], one["time"]) == ("ImagingStudy/s2", 400, "2024-05-01 13:00:00+00:00")


def test_an_unknown_state_is_refused(run_command: RunCommand, lake: Lake) -> None:
    code, out, err = run_command("uploads", "--state", "lost", "--lake", lake.root)
    assert (code, out) == (2, "")
    choices = "stored, unconfirmed, rejected, failed, held, orphaned and unchanged"
    assert err == f"dicom-etl: --state lost: the choices are {choices}\n"


def test_failed_sends_only_what_was_rejected(
    run_command: RunCommand,
    tmp_path: Path,
    server: Proxy,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DICOM_ETL_FHIR__EXISTING_STUDY", "duplicate")  # another test's site has the same studies there
    name = f"uploads-{compute_fingerprint(request.node.name)[:16]}"
    for subject in (1, 2):
        write_instance(
            tmp_path / name / f"primary/sub-{subject}/sam-1/1.dcm",
            study=str(subject),
            series="1",
            PatientID=f"P-{subject}",
        )
    where = (tmp_path / name, "--lake", tmp_path / "lake")
    outcome = {"resourceType": "OperationOutcome", "issue": [{"severity": "error", "code": "invalid"}]}

    def no_studies(asked: ReceivedRequest) -> Reply | None:
        refused = asked.method == "POST" and not asked.path and next(bundles, 9) >= 2
        return Reply(422, orjson.dumps(outcome)) if refused else None

    bundles = iter(range(9))  # the Endpoint, the Patients, then the studies
    server.rule = no_studies
    assert run_command("run", *where, "--fhir-url", server.url)[0] == 1
    code, out, _ = run_command("uploads", *where, "--json")
    listed = json.loads(out)["datasets"][name]["listed"]
    assert code == 0
    assert [(one["state"], one["status"]) for one in listed] == [("rejected", 422)] * 2
    assert "P-1" not in out

    server.rule = lambda _: None
    write_instance(tmp_path / name / "primary/sub-3/sam-1/1.dcm", study="3", series="1", PatientID="P-3")
    for stage in ("crawl", "extract", "build"):
        run_command(stage, *where)
    code, out, _ = run_command("upload", *where, "--fhir-url", server.url, "--failed", "--json")
    sent = json.loads(out)["datasets"][name]["upload"]["counts"]
    assert (code, sent["ImagingStudy"]) == (0, {"stored": 2, "waiting": 1})
    assert json.loads(run_command("uploads", *where, "--json")[1])["datasets"][name]["listed"] == []
