"""The server's own Patients: search, and what to do with what is found."""

import pytest

from dicom_etl.server.client import escaped
from dicom_etl.upload.linking import Link, contradictions, link_of

OURS = {"resourceType": "Patient", "id": "ours", "birthDate": "1980-05-01", "gender": "female"}


def theirs(identity: str = "theirs", **more: str) -> dict[str, object]:
    return {"resourceType": "Patient", "id": identity, "meta": {"versionId": "4"}, **more}


@pytest.mark.parametrize(
    ("token", "written"),
    [
        ("A|B", "A\\|B"),
        ("A,B", "A\\,B"),
        ("A$B", "A\\$B"),
        ("A\\B", "A\\\\B"),
        ("A\\,B", "A\\\\\\,B"),
        ("Ä ?&+", "Ä ?&+"),
    ],
)
def test_tokens_are_escaped_as_fhir_asks(token, written):
    assert escaped(token) == written


def test_nothing_on_the_server_means_that_ours_is_sent():
    assert link_of(OURS, []) == Link("none")


def test_our_own_patient_is_not_foreign():
    assert link_of(OURS, [theirs("ours")]) == Link("own")


def test_one_other_patient_that_does_not_contradict_is_linked():
    assert link_of(OURS, [theirs(birthDate="1980")]) == Link("linked", "theirs", "4")


def test_another_beside_our_own_is_told():
    assert link_of(OURS, [theirs("ours"), theirs()]) == Link("appeared", detail="Patient/theirs")


def test_several_are_ambiguous():
    link = link_of(OURS, [theirs("b"), theirs("a")])

    assert link == Link("ambiguous", detail="Patient/a, Patient/b")


def test_a_contradiction_names_the_elements_and_not_their_values():
    link = link_of(OURS, [theirs(birthDate="1999-01-01", gender="male")])

    assert link == Link("contradicts", detail="birthDate and gender of Patient/theirs")


@pytest.mark.parametrize(
    ("other", "elements"),
    [
        ({}, []),
        ({"gender": "unknown", "birthDate": "1980-05"}, []),
        ({"gender": "male"}, ["gender"]),
        ({"birthDate": "1980-06"}, ["birthDate"]),
    ],
)
def test_only_what_both_say_can_contradict(other, elements):
    assert contradictions(OURS, other) == elements
