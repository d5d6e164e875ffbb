"""No secret, and no value that identifies a patient, is logged, printed, raised, stored or shown: planted values.

Header tables, NDJSON, the identities and the columns of a ledger that hold what was sent are the data, and exempt.
"""

import json
import logging
import os
import re
import sys
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import orjson
import pyarrow.parquet as pq
import pytest

from definitions import build_defs
from dicom_etl import cli
from dicom_etl.lake.tables import Lake
from dicom_etl.pipeline import Pipeline, run
from dicom_etl.settings import load_settings
from resources import PipelineResource
from tests.servers.hapi_server import HapiServer
from tests.support.authorization_server import CLIENT, AuthorizationServer
from tests.support.datasets import write_instance
from tests.support.log_collection import collect_logs
from tests.support.planted_values import CLIENT_SECRET, GIVEN_TOKEN, PASSWORD, SENT, TOKEN, repeat_request
from tests.support.planted_values import PLANTED as CLIENT_PLANTED
from tests.support.planted_values import SECRETS as CLIENT_SECRETS
from tests.support.proxy import Proxy, ReceivedRequest, Reply, run_proxy
from tests.support.upload_lakes import query_ledger

ID_KEY = "ik-Chimborazonian-1618-of-thirty-two-bytes-or-more"
SECRETS = (*CLIENT_SECRETS, ID_KEY)
PLANTED = (*CLIENT_PLANTED, "chimborazonian", "xanaduweg", "rumpelstilz")
HEADER = {
    "PatientName": "Ossianowicz^Thessalonia",
    "PatientID": "MRN-Kalypso-90210",
    "PatientBirthDate": "19370519",
    "AccessionNumber": "Pythagora-55",
    "PatientAddress": "Xanaduweg 7",
    "OtherPatientIDs": "Kalypso-2",
    "ReferringPhysicianName": "Rumpelstilz^Ida",
}
AUTHORIZATIONS: Mapping[str, Mapping[str, str]] = {
    "bearer": {},
    "basic": {"username": "me"},
    "oauth2": {"client_id": CLIENT},
    "api-key": {},
}
DATA = ("headers/", "fhir/", "identities/")
DATA_COLUMNS = {"contribution", "business_key"}


# -- servers that repeat requests --------------------------------------------------------------------------------------


def make_outcome(request: ReceivedRequest) -> bytes:
    issue = {"severity": "error", "code": "invalid", "diagnostics": repeat_request(request)}
    return orjson.dumps(
        {"resourceType": "OperationOutcome", "issue": [issue], "text": {"div": repeat_request(request)}}
    )


def accepts(_: ReceivedRequest) -> Reply | None:
    return None


def refuses_credentials(request: ReceivedRequest) -> Reply | None:
    return None if request.path == "metadata" else Reply(401, make_outcome(request))


def refuses_resources(request: ReceivedRequest) -> Reply | None:
    return Reply(422, make_outcome(request)) if request.is_write_post else None


def refuses_searches(request: ReceivedRequest) -> Reply | None:
    return Reply(400, make_outcome(request)) if re.match(r"Patient(\?|/_search)", request.path) else None


def breaks(request: ReceivedRequest) -> Reply | None:
    page = f"<html><h1>Error</h1><pre>{repeat_request(request)}</pre></html>".encode()
    return Reply(500, page) if request.is_write_post else None


def breaks_in_fhir(request: ReceivedRequest) -> Reply | None:
    return Reply(500, make_outcome(request)) if request.is_write_post else None


SERVERS = [accepts, refuses_credentials, refuses_resources, refuses_searches, breaks, breaks_in_fhir]


@pytest.fixture(autouse=True)
def _secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("DICOM_ETL_")]:
        monkeypatch.delenv(name)
    for name, secret in zip(("TOKEN", "PASSWORD", "CLIENT_SECRET", "API_KEY"), SECRETS, strict=False):
        monkeypatch.setenv(f"DICOM_ETL_FHIR_{name}", secret)
    monkeypatch.setenv("DICOM_ETL_ID_KEY", ID_KEY)
    monkeypatch.setenv("DICOM_ETL_ENGINE", "serial")
    monkeypatch.setenv("DICOM_ETL_FHIR__EXISTING_STUDY", "duplicate")  # other tests have the same studies on the server
    monkeypatch.setenv("COLUMNS", "500")
    monkeypatch.setenv("PYTHONASYNCIODEBUG", "1")


@pytest.fixture
def giver() -> Iterator[str]:
    """The token endpoint."""
    with run_proxy(rule=AuthorizationServer(GIVEN_TOKEN, CLIENT_SECRET).rule) as endpoint:
        yield endpoint.url


@pytest.fixture
def settings_of(tmp_path: Path, giver: str) -> Callable[..., Path]:
    """Writes a dataset with planted values, and settings for it."""
    for number in (1, 2):
        write_instance(tmp_path / f"ds/primary/sub-1/sam-1/{number}.dcm", **HEADER)
    broken = HEADER | {"PatientBirthDate": "1937-05-19", "PatientSex": "X-odd", "PatientID": "Kalypso" * 20}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_instance(tmp_path / "ds/primary/sub-2/sam-1/1.dcm", study="2", series="2", **broken)

    site = uuid.uuid4()  # on a server that tests share

    def write(url: str, authorization: str) -> Path:
        login = {"auth": authorization, **AUTHORIZATIONS[authorization]}
        login |= {"token_url": giver} if authorization == "oauth2" else {}
        lines = [f'lake = "lake-{authorization}"', "contact_details = true", "staff_names = true"]
        lines += [f'namespace = "urn:uuid:{site}"', "[fhir]"]
        lines += [f'url = "{url}"', "retry_seconds = 0", *(f'{name} = "{value}"' for name, value in login.items())]
        lines += ["[datasets.ds]", f'root = "{tmp_path}/ds"', f'assigning_authority = "urn:uuid:{site}"']
        file = tmp_path / f"{authorization}.toml"
        file.write_text("\n".join(lines))
        return file

    return write


# -- what is collected ------------------------------------------------------------------------------------------------


def lake_texts(lake: Path) -> Iterator[tuple[str, str]]:
    """Whatever the lake holds beside the data: tables without the columns that are data, reports, logs."""
    for file in sorted(lake.rglob("*")):
        name = file.relative_to(lake).as_posix()
        if not file.is_file() or name.startswith(DATA):
            continue
        if file.suffix == ".parquet":
            table = pq.ParquetFile(file).read()
            kept = [column for column in table.column_names if column not in DATA_COLUMNS]
            yield name, json.dumps(table.select(kept).to_pylist(), default=str)
        elif file.suffix == ".sqlite":
            tables = query_ledger(Lake(str(lake)), "SELECT name FROM sqlite_master WHERE type = 'table'")
            assert {"resources", "attempts", "units"} <= {table["name"] for table in tables}
            for table in tables:
                rows = query_ledger(Lake(str(lake)), f"SELECT * FROM {table['name']}")
                yield name, json.dumps([{key: row[key] for key in row.keys() - DATA_COLUMNS} for row in rows])
        elif file.suffix not in (".sqlite-wal", ".sqlite-shm"):  # of the same tables
            yield name, file.read_text(encoding="utf-8", errors="replace")


def leaks(texts: Iterator[tuple[str, str]] | list[tuple[str, str]]) -> list[str]:
    """Find planted values, with their location and the text around them."""
    return [
        f"{name}: {text[max(0, at - 80) : at + 60]!r}"
        for name, text in texts
        for planted in PLANTED
        if (at := text.casefold().find(planted)) >= 0
    ]


def commanded(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr("sys.argv", ["dicom-etl", *map(str, arguments)])
    with pytest.raises(SystemExit):
        cli.main()


def dagster_events(settings_file: Path) -> str:
    """All that Dagster keeps of a run in process."""
    defs = build_defs(resource_overrides={"etl": PipelineResource(settings_file=str(settings_file))})
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("dataset", ["ds"])
        result = defs.resolve_job_def("load_dataset").execute_in_process(
            partition_key="ds", instance=instance, raise_on_error=False
        )
        kept = [instance.get_run_by_id(result.run_id), *instance.all_logs(result.run_id), *result.all_events]
        assert len(kept) > 20
        return "\n".join(map(repr, kept))


# -- the tests --------------------------------------------------------------------------------------------------------


def test_the_check_finds_planted_values() -> None:
    with collect_logs() as logs:
        logging.getLogger("aiohttp.client").debug("sending %s", HEADER["PatientName"])
        warnings.warn("Kalypso is too long", stacklevel=1)
    assert len(leaks([("log", text) for text in logs])) == 3
    assert [secret for secret in SECRETS if not leaks([("", secret)])] == []
    assert [value for value in HEADER.values() if not leaks([("", value)])] == []


@pytest.mark.parametrize(
    ("authorization", "rule"),
    [
        *(("bearer", rule) for rule in SERVERS),
        *((name, rule) for name in list(AUTHORIZATIONS)[1:] for rule in (refuses_credentials, breaks_in_fhir)),
    ],
)
def test_no_planted_value_leaves_the_pipeline(
    rule: Any, authorization: str, hapi: HapiServer, settings_of: Any, capfd: Any, tmp_path: Path
) -> None:
    with run_proxy(hapi.base_url, rule) as server, collect_logs() as logs:
        pipeline = Pipeline(load_settings(settings_of(server.url, authorization)))
        done = run(pipeline, ["ds"])
        named = any("Ossianowicz" in one.body.decode() for one in server.requests)
        assert named == (rule not in (refuses_credentials, refuses_searches))
        assert_sent(server, authorization)
        urls = [("url", one.path) for one in server.requests]  # those that a server logs
        errors = [row["reason_text"] for row in query_ledger(pipeline.lake, "SELECT reason_text FROM resources")]

    printed = capfd.readouterr()
    told = [("log", text) for text in logs] + [("stdout", printed.out), ("stderr", printed.err), ("result", repr(done))]
    assert len(logs) > 5
    assert leaks([*told, *urls, *lake_texts(tmp_path / f"lake-{authorization}")]) == []
    if rule in (refuses_resources, breaks_in_fhir):
        assert any("HAPI-1821: Invalid code: Patient (masked) (masked)" in (error or "") for error in errors)


def assert_sent(server: Proxy, authorization: str) -> None:
    """The requests had the credentials."""
    values = " ".join(value for one in server.requests for value in one.headers.values())
    assert SENT[authorization] in values


@pytest.mark.parametrize("rule", [refuses_resources, breaks_in_fhir, None], ids=["refuses", "breaks", "not there"])
def test_no_planted_value_leaves_the_command_and_dagster(
    rule: Any, hapi: HapiServer, settings_of: Any, capfd: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with run_proxy(hapi.base_url, rule or accepts) as server, collect_logs() as logs:
        settings = settings_of(server.url if rule else "http://127.0.0.1:1/fhir", "bearer")
        commanded(monkeypatch, "run", "--settings", settings)
        commanded(monkeypatch, "upload", "--settings", settings, "--json")
        for command in (["status"], ["status", "--json"], ["explain", "ds", "sub-1"], ["explain", "ds", "sub-2"]):
            commanded(monkeypatch, *command, "--settings", settings)
        commanded(monkeypatch, "doctor", "--settings", settings)
        events = dagster_events(settings)

    printed = capfd.readouterr()
    assert "Patient matching" in printed.out
    told = [("log", text) for text in logs] + [("stdout", printed.out), ("stderr", printed.err), ("dagster", events)]
    assert leaks([*told, *lake_texts(tmp_path / "lake-bearer")]) == []


def test_errors_in_settings_do_not_show_secrets(
    settings_of: Any, capfd: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = settings_of("http://127.0.0.1:1/fhir", "basic")
    file.write_text(file.read_text().replace("http://", f"http://me:{PASSWORD.replace(' ', '')}@[", 1))
    commanded(monkeypatch, "run", "--settings", file)
    file.write_text(file.read_text().replace("@[", "@", 1).replace("[fhir]", f'[fhir]\ntoken = "{TOKEN}"'))
    commanded(monkeypatch, "run", "--settings", file)
    printed = capfd.readouterr()
    assert "fhir.url" in printed.err
    assert "fhir.token" in printed.err
    assert leaks([("stdout", printed.out), ("stderr", printed.err)]) == []
    assert sys.exc_info() == (None, None, None)
