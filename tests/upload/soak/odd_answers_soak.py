"""Runs of the upload under odd answers, and what must be true afterwards; used by a test and by `make soak`.

A real server is behind the proxy. It has the resources of an earlier run, and changes of another client: a note in a
study of the lake, a telephone number in its Patients, a study and a Patient that duplicate new ones of the lake.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from dicom_etl.fhir_client import FhirError
from dicom_etl.fhir_connection import get_server_name
from dicom_etl.lake.tables import Lake
from dicom_etl.settings import Settings
from dicom_etl.stages.upload import upload
from tests.servers.hapi_server import run_hapi
from tests.support.server_content import get, put, status, version, without_meta
from tests.support.upload_lakes import (
    DatasetFactory,
    Study,
    attempts,
    new_lake,
    query_ledger,
    settings_for,
    with_changes,
)
from tests.support.uploads import make_external_study
from tests.upload.support.odd_answers import Grammar, run_changing_proxy

NOTE, PHONE = [{"text": "seen by the radiologist"}], [{"system": "phone", "value": "1"}]
SECONDS = 150.0  # bound on a run, on a busy machine too; each request is tried for half a second
MAX_BYTES = 300_000_000  # of memory
# prints the largest resident set of the process, in kB, as the last word of standard output; that of `resource` would
# begin with the size of the parent
_MEASURED = """
from dicom_etl.__main__ import main
try:
    main()
finally:
    print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""

NOTED, SHARED = Study("1", "P1"), Study("2", "P2", unit="sub-2", rule="authority")
GROWING, SAME = Study("3", "P3", unit="sub-3"), Study("4", "P4", unit="sub-4")
BEFORE = [NOTED, SHARED, GROWING, SAME]
AFTER = [
    with_changes(NOTED, series={"1": 2, "2": 1}, patient={"gender": "male"}),
    with_changes(SHARED, series={"1": 4}, patient={"gender": "female"}),
    with_changes(GROWING, series={"1": 2, "2": 2}),
    SAME,
    Study("5", "P5", unit="sub-5"),  # another client has a study of this UID
    Study("6", "P6", unit="sub-6", rule="authority"),  # another client has a Patient of this identifier
    Study("7", "P7", unit="sub-7"),
    Study("8", "P8", unit="sub-8", series={"1": 150}),  # sent by a request of its own
]
EXISTING, KNOWN = AFTER[4], AFTER[5]


def run_seed(url: str, folder: Path, seed: int, *, is_command: bool = False, only: str = "") -> list[str]:
    """Upload under the odd answers of a seed (`only`: of this name, with status 200), then honestly; returns them.

    Raises:
        AssertionError: something that must be true is not.
    """
    factory = DatasetFactory(f"odd-{seed}-{os.urandom(4).hex()}")
    lake = new_lake(folder / f"lake-{factory.name}")
    factory.build(lake, "A", BEFORE)
    grammar = Grammar(seed, is_honest=True, only=only)
    with run_changing_proxy(url, grammar.change) as proxied:
        settings = settings_for(proxied, retry_seconds=0.5, timeout_seconds=20, max_bundle_entries=4)
        upload(["A"], lake, settings)
        external = change_as_another_client(url, factory)
        factory.build(lake, "A", AFTER)
        grammar.is_honest = False
        began = time.monotonic()
        if is_command:
            _run_command(lake, proxied)
        else:
            with suppress(FhirError):  # the server cannot be used at all
                upload(["A"], lake, settings)
        assert time.monotonic() - began < SECONDS
        check_kept(url, external)
        check_ledger(url, lake, settings, factory)
        grammar.is_honest = True
        upload(["A"], lake, settings)
        check_kept(url, external)
        check_final(url, lake, factory, external)
    return grammar.made


def change_as_another_client(url: str, factory: DatasetFactory) -> dict[str, dict[str, Any]]:
    """Make the changes of another client; returns the resources that must stay as they are, by Type/id."""
    noted = factory.imaging_study("A", NOTED) | {"note": NOTE}
    for study in (NOTED, SHARED):
        put(url, factory.patient("A", study) | {"telecom": PHONE})
    external_study = make_external_study(factory) | {
        "identifier": factory.imaging_study("A", EXISTING)["identifier"][:1]
    }
    external_patient = factory.patient("A", KNOWN) | {"id": f"{factory.name}-p", "telecom": PHONE}
    external = {f"{one['resourceType']}/{one['id']}": one for one in (noted, external_study, external_patient)}
    for resource in external.values():
        put(url, resource)
    return external


def _run_command(lake: Lake, url: str) -> None:
    """Run `dicom-etl upload` in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if not name.upper().endswith("_PROXY")}
    environment |= {"DICOM_ETL_FHIR__RETRY_SECONDS": "0.5", "DICOM_ETL_FHIR__TIMEOUT_SECONDS": "20", "NO_COLOR": "1"}
    environment |= {"DICOM_ETL_FHIR__MAX_BUNDLE_ENTRIES": "4"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[3])
    folder = Path(lake.root).parent
    (folder / "A").mkdir(exist_ok=True)
    (folder / "dicom-etl.toml").write_text('[datasets.A]\nroot = "A"\n')
    command = [sys.executable, "-c", _MEASURED, "upload", "A", "--lake", str(lake.root), "--fhir-url", url]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    assert done.returncode in (0, 1, 2, 3), (done.returncode, done.stderr)
    assert "no registered dataset" not in done.stderr, done.stderr  # it has been to the server
    if done.returncode:
        assert done.stderr.strip() or done.stdout.strip()
    assert int(done.stdout.split()[-1]) * 1024 < MAX_BYTES, done.stdout.split()[-1]


def check_kept(url: str, external: dict[str, dict[str, Any]]) -> None:
    """Nothing of another client is overwritten or lost."""
    for path, resource in external.items():
        assert without_meta(get(url, path)) == resource, path
    for path in external:
        assert status(url, path) == 200


def check_ledger(url: str, lake: Lake, settings: Settings, factory: DatasetFactory) -> None:
    """The server has each stored resource as it was sent, apart from those that another client changed since."""
    sent: dict[str, dict[str, Any]] = {}  # by digest
    for study in BEFORE + AFTER:
        for resource in (factory.imaging_study("A", study), factory.patient("A", study)):
            sent[_digest(resource)] = resource
    may_differ = {factory.study_id("A", "1"), factory.patient_id("A", NOTED), factory.patient_id("A", SHARED)}
    name = get_server_name(settings.fhir.url or "")
    for row in query_ledger(lake, "SELECT * FROM resources WHERE server = ? AND state = 'stored'", name):
        if row["is_external"] or row["type"] == "Endpoint" or row["id"] in may_differ:
            continue
        resource = get(url, f"{row['type']}/{row['server_id']}")
        assert version(resource) == row["version"]
        if row["hash"] in sent:  # else a study that refers to the Patient of another client
            assert without_meta(resource) == sent[row["hash"]]


def _digest(resource: dict[str, Any]) -> str:
    text = json.dumps(resource, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def check_final(url: str, lake: Lake, factory: DatasetFactory, external: dict[str, dict[str, Any]]) -> None:
    """After an honest run the server has the content of the lake."""
    assert attempts(lake) == []
    external_patient = next(one for path, one in external.items() if path.startswith("Patient/"))
    for study in AFTER:
        path, expected = f"ImagingStudy/{factory.study_id('A', study.number)}", factory.imaging_study("A", study)
        patient = f"Patient/{factory.patient_id('A', study)}"
        if study.number == "1":
            continue  # held, as `check_kept` has seen
        if study is EXISTING and status(url, path) != 200:
            continue  # held: it was found
        if study is KNOWN and status(url, patient) != 200:
            expected = expected | {"subject": {"reference": f"Patient/{external_patient['id']}"}}
        else:
            phone = {"telecom": PHONE} if study.number == "2" else {}
            assert without_meta(get(url, patient)) == factory.patient("A", study) | phone
        assert without_meta(get(url, path)) == expected
    states = {row["id"]: row["state"] for row in query_ledger(lake, "SELECT id, state FROM resources")}
    not_stored = {identity for identity, state in states.items() if state != "stored"}
    assert not_stored <= {factory.study_id("A", "1"), factory.study_id("A", "5")}


def main() -> None:
    """Run seeds against a server of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=300)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    failed = []
    with tempfile.TemporaryDirectory() as folder, run_hapi(folder=Path(folder) / "hapi") as server:
        for seed in range(options.first, options.first + options.seeds):
            try:
                run_seed(server.base_url, Path(folder), seed, is_command=seed % 10 == 0)
            except AssertionError as error:
                failed.append(seed)
                print(f"seed {seed}: {error}", flush=True)
    print(f"{options.seeds} seeds of odd answers, {len(failed)} failed: {failed}", flush=True)
    raise SystemExit(int(bool(failed)))


if __name__ == "__main__":
    main()
