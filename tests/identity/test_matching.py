"""Whose a study is: the rules in their order, and what is held."""

from dataclasses import replace
from typing import Any

import pytest

from dicom_etl.identity.matching import (
    MatchingScope,
    PatientEvidence,
    PatientMatch,
    authority_uri,
    is_placeholder,
    match_patients,
)

SCOPE = MatchingScope("breast", "https://site.example", None, {})
CLAIM = PatientEvidence("1.1", "sub-1", "sub-1", "P-1", None, None, False)


def claim(**fields: Any) -> PatientEvidence:
    """A claim of subject sub-1; a subject is its own unit."""
    if "subject" in fields:
        fields.setdefault("unit", fields["subject"] or ".")
    return CLAIM._replace(**fields)


def only(*claims: PatientEvidence, scope: MatchingScope = SCOPE) -> PatientMatch:
    (person,) = match_patients(claims, scope)
    return person


def decided(person: PatientMatch) -> tuple[str, str, str, str]:
    return person.rule, person.system, person.value, person.state


# -- the rules --------------------------------------------------------------------------------------------------------


def test_rule_1_the_crosswalk_comes_first() -> None:
    scope = replace(SCOPE, authority="urn:oid:1.9", crosswalk={"sub-1": ("urn:x:persons", "p7")})
    assert decided(only(claim(universal_id="1.2.3", universal_id_type="ISO"), scope=scope)) == (
        "crosswalk",
        "urn:x:persons",
        "p7",
        "ok",
    )


def test_a_line_of_another_subject_decides_nothing() -> None:
    scope = replace(SCOPE, crosswalk={"sub-2": ("urn:x:persons", "p7")})
    assert only(claim(), scope=scope).rule == "patient-id"


def test_rule_2_the_patient_id_under_the_authority_of_its_header() -> None:
    person = only(claim(universal_id="1.2.3", universal_id_type="ISO"))
    assert decided(person) == ("authority", "urn:oid:1.2.3", "P-1", "ok")


def test_rule_2_the_patient_id_under_the_authority_of_the_dataset() -> None:
    person = only(claim(), scope=replace(SCOPE, authority="urn:oid:1.9"))
    assert decided(person) == ("authority", "urn:oid:1.9", "P-1", "ok")


def test_the_headers_authority_counts_before_that_of_the_dataset() -> None:
    person = only(claim(universal_id="1.2.3", universal_id_type="ISO"), scope=replace(SCOPE, authority="urn:oid:1.9"))
    assert person.system == "urn:oid:1.2.3"


def test_an_authority_that_some_instances_name_counts_for_the_study() -> None:
    person = only(claim(), claim(universal_id="1.2.3", universal_id_type="ISO"))
    assert decided(person) == ("authority", "urn:oid:1.2.3", "P-1", "ok")


def test_subjects_that_share_a_patient_id_under_an_authority_are_one_person() -> None:
    scope = replace(SCOPE, authority="urn:oid:1.9")
    found = match_patients([claim(), claim(study_uid="1.2", subject="sub-2")], scope)
    assert [decided(person) for person in found] == [("authority", "urn:oid:1.9", "P-1", "ok")] * 2


def test_a_removed_identity_is_no_id_of_an_authority() -> None:
    person = only(claim(identity_removed=True), scope=replace(SCOPE, authority="urn:oid:1.9"))
    assert decided(person) == ("patient-id", "https://site.example/breast/patient-id", "P-1", "ok")


def test_rule_3_the_patient_id_within_its_dataset() -> None:
    assert decided(only(claim())) == ("patient-id", "https://site.example/breast/patient-id", "P-1", "ok")


def test_several_studies_of_a_subject_under_one_patient_id_are_one_persons() -> None:
    found = match_patients([claim(), claim(study_uid="1.2")], SCOPE)
    assert [(person.study_uid, person.rule, person.value) for person in found] == [
        ("1.1", "patient-id", "P-1"),
        ("1.2", "patient-id", "P-1"),
    ]


@pytest.mark.parametrize(("patient_id", "reason"), [(None, None), ("", None), ("ANONYMOUS", "patient-id-placeholder")])
def test_rule_4_the_subject_where_the_patient_id_names_nobody(patient_id: str | None, reason: str | None) -> None:
    person = only(claim(patient_id=patient_id))
    assert decided(person) == ("subject", "https://site.example/breast/subject", "sub-1", "ok")
    assert person.reason == reason


def test_rule_4_the_subject_where_several_subjects_share_a_patient_id() -> None:
    found = match_patients(
        [claim(), claim(study_uid="1.2", subject="sub-2"), claim(study_uid="1.3", subject="sub-3")], SCOPE
    )
    assert [(p.rule, p.value, p.reason) for p in found] == [
        ("subject", "sub-1", "patient-id-shared"),
        ("subject", "sub-2", "patient-id-shared"),
        ("subject", "sub-3", "patient-id-shared"),
    ]


def test_a_patient_id_that_is_shared_leaves_others_alone() -> None:
    others = [claim(study_uid="1.2", subject="sub-2"), claim(study_uid="1.3", subject="sub-3", patient_id="P-3")]
    found = match_patients([claim(), *others], SCOPE)
    assert [(p.subject, p.rule) for p in found] == [
        ("sub-1", "subject"),
        ("sub-2", "subject"),
        ("sub-3", "patient-id"),
    ]


def test_rule_5_the_study_where_there_is_no_subject_either() -> None:
    person = only(claim(subject=None, patient_id=None))
    assert decided(person) == ("study", "https://site.example/breast/study", "1.1", "ok")
    assert person.reason == "patient-unresolved"


def test_without_a_subject_the_patient_id_still_counts() -> None:
    assert only(claim(subject=None)).rule == "patient-id"


def test_instances_without_the_patient_id_of_the_others_follow_them() -> None:
    person = only(claim(), claim(patient_id=None))
    assert decided(person) == ("patient-id", "https://site.example/breast/patient-id", "P-1", "ok")
    assert person.reason == "patient-id-incomplete"


def test_a_dataset_whose_name_is_no_part_of_a_uri_still_gives_one() -> None:
    person = only(claim(), scope=MatchingScope("my data/Köln", "https://site.example/", None, {}))
    assert person.system == "https://site.example/my%20data%2FK%C3%B6ln/patient-id"


# -- held -------------------------------------------------------------------------------------------------------------


def test_a_study_with_two_patient_ids_is_held() -> None:
    person = only(claim(), claim(patient_id="P-2"))
    assert (person.state, person.reason) == ("held", "study-two-patients")


def test_a_study_under_two_subjects_is_held_in_both_units() -> None:
    found = match_patients([claim(), claim(subject="sub-2")], SCOPE)
    assert [(p.unit, p.building_unit, p.state, p.reason) for p in found] == [
        ("sub-1", "sub-1", "held", "study-two-subjects"),
        ("sub-2", "sub-2", "held", "study-two-subjects"),
    ]


def test_a_study_under_a_subject_and_under_none_is_held() -> None:
    found = match_patients([claim(), claim(subject=None)], SCOPE)
    assert [(p.unit, p.state) for p in found] == [(".", "held"), ("sub-1", "held")]


def test_the_crosswalk_decides_a_study_with_two_patient_ids() -> None:
    scope = replace(SCOPE, crosswalk={"sub-1": ("urn:x:persons", "p7")})
    assert decided(only(claim(), claim(patient_id="P-2"), scope=scope)) == ("crosswalk", "urn:x:persons", "p7", "ok")


def test_the_crosswalk_decides_a_study_under_two_subjects_and_the_first_unit_builds_it() -> None:
    same = ("urn:x:persons", "p7")
    scope = replace(SCOPE, crosswalk={"sub-1": same, "sub-2": same})
    found = match_patients([claim(subject="sub-2"), claim()], scope)
    assert [(p.unit, p.building_unit, p.rule, p.value, p.state) for p in found] == [
        ("sub-1", "sub-1", "crosswalk", "p7", "ok"),
        ("sub-2", "sub-1", "crosswalk", "p7", "ok"),
    ]


@pytest.mark.parametrize(
    "crosswalk",
    [
        {"sub-1": ("urn:x:persons", "p7")},
        {"sub-1": ("urn:x:persons", "p7"), "sub-2": ("urn:x:persons", "p8")},
    ],
)
def test_a_crosswalk_that_names_one_subject_or_two_persons_decides_nothing(
    crosswalk: dict[str, tuple[str, str]],
) -> None:
    found = match_patients([claim(), claim(subject="sub-2")], replace(SCOPE, crosswalk=crosswalk))
    assert [p.state for p in found] == ["held", "held"]


# -- the whole --------------------------------------------------------------------------------------------------------


def test_the_order_of_the_claims_does_not_matter() -> None:
    claims = [claim(), claim(patient_id=None), claim(study_uid="1.0", subject="sub-2"), claim(study_uid="1.3")]
    assert match_patients(claims, SCOPE) == match_patients(claims[::-1], SCOPE)


@pytest.mark.parametrize(
    "patient_id",
    [
        "ANONYMOUS",
        "anonymized",
        "De-Identified",
        "UNKNOWN",
        "n/a",
        "NULL",
        "none",
        "Test Patient",
        "0",
        "000-000",
        "XXX",
        "----",
        "...",
        " ",
    ],
)
def test_a_placeholder_names_nobody(patient_id: str) -> None:
    assert is_placeholder(patient_id)


@pytest.mark.parametrize("patient_id", ["P-1", "0001", "ANON-0042", "TEST1", "patient 7", "X12", "患者一", "Ж", "ك-٧"])
def test_an_id_that_is_like_a_placeholder_or_of_another_script_is_an_id(patient_id: str) -> None:
    assert not is_placeholder(patient_id)


@pytest.mark.parametrize(
    ("identifier", "kind", "uri"),
    [
        ("1.2.3", "ISO", "urn:oid:1.2.3"),
        ("1.2.3", "iso", "urn:oid:1.2.3"),
        ("4f1b2f3e-0000-4000-8000-000000000000", "UUID", "urn:uuid:4f1b2f3e-0000-4000-8000-000000000000"),
        ("https://hospital.example/mrn", "URI", "https://hospital.example/mrn"),
        ("hospital.example", "DNS", "http://hospital.example"),
        ("1.2.3", "L", None),
        ("1.2.3", None, None),
        (None, "ISO", None),
        ("", "ISO", None),
        ("our hospital", "DNS", None),
    ],
)
def test_the_uri_of_an_issuer(identifier: str | None, kind: str | None, uri: str | None) -> None:
    assert authority_uri(identifier, kind) == uri
