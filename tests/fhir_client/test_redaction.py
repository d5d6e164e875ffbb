"""Redaction: which text from a server is kept, and which values are masked."""

import time
from dataclasses import replace

import orjson
import pytest

from dicom_etl.fhir_client import RejectedError
from dicom_etl.fhir_client.redaction import redact
from tests.support.fhir_answers import get_error, json_reply, operation_outcome, write_request
from tests.support.proxy import ReceivedRequest, Reply, run_proxy

PATIENT = {
    "resourceType": "Patient",
    "id": "6f1c0c3e-1111-5222-8333-123456789abc",
    "identifier": [{"system": "urn:oid:1.2.3", "value": "MRN-77"}],
    "name": [{"family": "Müller-Lüdenscheidt", "given": ["Eva"]}],
    "birthDate": "1961-02-03",
    "gender": "nonsense",
}
STUDY = {
    "resourceType": "ImagingStudy",
    "status": "also-nonsense",
    "description": "failed knee of the left",
    "identifier": [{"type": {"text": "accession"}, "value": "ACC9"}],
    "series": [{"uid": "2.25.1234567890", "modality": {"code": "MR"}}],
}


BUNDLE = orjson.dumps({"resourceType": "Bundle", "entry": [{"resource": PATIENT}, {"resource": STUDY}]})


def redacted(text: str, *secrets: str, path: str = "", body: bytes | None = BUNDLE) -> str:
    return redact(text, secrets, f"http://host/fhir/{path}", body)


@pytest.mark.parametrize(
    "text",
    [
        'HAPI-1821: [element="gender"] Invalid value "nonsense": Unknown AdministrativeGender code \'nonsense\'',
        "HAPI-1094: Resource Endpoint/e1 not found, specified in path: ImagingStudy.endpoint",
        "HAPI-0989: can't update Patient/6f1c0c3e-1111-5222-8333-123456789abc: version 2 is not 3",
        "series 2.25.1234567890 has no instance; 1.2.840.10008.5.1.4.1.1.4 is unknown at `ImagingStudy.series[0].uid`",
        "the update of the left hand failed",  # words of a description occur in any sentence
    ],
)
def test_explanatory_text_is_kept(text: str) -> None:
    assert redacted(text) == text


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Patient Eva Müller-Lüdenscheidt is there", "Patient (masked) (masked) is there"),
        ("index holds (MULLER, EVA) twice", "index holds ((masked), (masked)) twice"),
        ("name=LÜDENSCHEIDTEVA", "name=(masked)"),
        ("born 1961-02-03, 19610203, 03.02.1961 or 3/2/1961", "born (masked), (masked), (masked) or (masked)"),
        ("MRN-77, mrn-77 and urn%3Aoid%3A1.2.3%7CMRN-77", "(masked), (masked) and urn:oid:1.2.3|(masked)"),
        ("of 'M&#252;ller-L&#252;denscheidt' or “Eva”", "of '…' or “…”"),
        ("somebody else: 'Jane Doe', 4711085, 1970-01-01", "somebody else: '…', (masked), (masked)"),
        ("about ACC9: failed knee of the left", "about (masked): (masked)"),
        ("it's 'Eva' who isn't 'female'", "it's '…' who isn't '…'"),
    ],
)
def test_identifying_values_are_masked(text: str, masked: str) -> None:
    assert redacted(text) == masked


def test_a_repeated_request_has_no_identifying_value() -> None:
    text = redacted(f"cannot parse {orjson.dumps(PATIENT).decode()}")
    assert text.startswith('cannot parse {"resourceType":"Patient","id":"6f1c0c3e')
    for value in ("Eva", "ller", "denscheidt", "1961", "77"):
        assert value not in text


def test_search_values_are_masked() -> None:
    path = "Patient?identifier=urn%3Aoid%3A1.2.3%7COssian%5C%2C12&_count=2"
    text = redacted('HAPI-0539: Invalid value Ossian of "identifier" in "Patient"', path=path, body=None)
    assert text == 'HAPI-0539: Invalid value (masked) of "identifier" in "Patient"'


def test_values_in_other_scripts_are_masked_inside_words() -> None:
    body = orjson.dumps({"resourceType": "Patient", "name": [{"family": "山田", "given": ["太郎"]}]})
    assert redacted("患者山田太郎 は", body=body) == "(masked) は"


def test_a_word_that_is_explanatory_and_identifying_is_masked() -> None:
    body = orjson.dumps({"resourceType": "Patient", "gender": "male", "name": [{"family": "Male"}]})
    assert redacted("code 'male' of male", body=body) == "code '…' of (masked)"


def test_the_error_of_a_write_is_redacted() -> None:
    def echo(request: ReceivedRequest) -> Reply:
        return json_reply(operation_outcome("invalid", f"HAPI-1821: Invalid code in {request.body.decode()}"), 400)

    request = replace(write_request(), body=orjson.dumps(PATIENT))
    with run_proxy(rule=echo) as server:
        error = get_error(server.url, lambda client: client.put(request))
    assert type(error) is RejectedError
    assert str(error).startswith('HTTP 400: invalid: HAPI-1821: Invalid code in {"resourceType":"Patient"')
    assert "Eva" not in str(error)


SECRET = "wombat-quokka-numbat"


@pytest.mark.parametrize("before", [0, 1, 17, 3_900, 3_990, 4_000, 4_150, 100_000])
@pytest.mark.parametrize(
    "text", [SECRET, "wombat%2Dquokka%2Dnumbat", "&#x77;ombat&#x2d;quokka&#x2d;numbat", "Müller-Lüdenscheidt"]
)
def test_truncation_leaves_no_part_of_a_value(before: int, text: str) -> None:
    """The text is truncated at several positions, and replacements before it make it shorter."""
    for filler in ("x ", f"{SECRET} ", "Eva "):
        text = redacted(filler * (before // len(filler)) + text + " and so on" * 500, SECRET).casefold()
        assert [part for part in ("womb", "quok", "&#x77", "müll", "lüde") if part in text] == []


@pytest.mark.parametrize(
    "text",
    [
        "'a 'b " * 50_000,
        "'" * 300_000,
        "%" * 300_000,
        "&#" * 150_000,
        "a-" * 150_000,
        "1-1-" * 90_000,
        "\ud800" * 9_000,
        "\0" * 9_000,
    ],
    ids=range(8),
)
def test_hostile_text_takes_little_time(text: str) -> None:
    start = time.process_time()
    redacted(text, SECRET)
    assert time.process_time() - start < 5  # seconds; with quadratic run time it would take minutes


def test_a_deeply_nested_request_is_redacted() -> None:
    body = b'{"resourceType":"Patient","a":' + b'{"a":' * 900 + b'"Ossian"' + b"}" * 901
    assert redacted("of Ossian", body=body) == "of (masked)"


def test_all_words_of_a_request_that_is_not_json_are_masked() -> None:
    assert redacted("of Ossian", body=b"family=Ossian") == "of (masked)"
