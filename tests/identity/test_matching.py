"""Patient matching: the rules in their order, and the studies that are held."""

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
EVIDENCE = PatientEvidence("1.1", "sub-1", "sub-1", "P-1", None, None, False)


def evidence(**fields: Any) -> PatientEvidence:
    """Evidence of subject sub-1; each subject is a unit."""
    if "subject" in fields:
        fields.setdefault("unit", fields["subject"] or ".")
    return EVIDENCE._replace(**fields)


def match_one(*items: PatientEvidence, scope: MatchingScope = SCOPE) -> PatientMatch:
    (match,) = match_patients(items, scope)
    return match


def summarise(match: PatientMatch) -> tuple[str, str, str, str]:
    return match.rule, match.system, match.value, match.state


class TestRules:
    def test_rule_1_the_crosswalk_takes_precedence(self) -> None:
        scope = replace(SCOPE, authority="urn:oid:1.9", crosswalk={"sub-1": ("urn:x:persons", "p7")})
        assert summarise(match_one(evidence(universal_id="1.2.3", universal_id_type="ISO"), scope=scope)) == (
            "crosswalk",
            "urn:x:persons",
            "p7",
            "ok",
        )

    def test_rule_1_an_entry_of_another_subject_does_not_apply(self) -> None:
        scope = replace(SCOPE, crosswalk={"sub-2": ("urn:x:persons", "p7")})
        assert match_one(evidence(), scope=scope).rule == "patient-id"

    def test_rule_2_patient_id_under_the_authority_of_the_header(self) -> None:
        match = match_one(evidence(universal_id="1.2.3", universal_id_type="ISO"))
        assert summarise(match) == ("authority", "urn:oid:1.2.3", "P-1", "ok")

    def test_rule_2_patient_id_under_the_authority_of_the_dataset(self) -> None:
        match = match_one(evidence(), scope=replace(SCOPE, authority="urn:oid:1.9"))
        assert summarise(match) == ("authority", "urn:oid:1.9", "P-1", "ok")

    def test_rule_2_the_header_takes_precedence_over_the_dataset(self) -> None:
        match = match_one(
            evidence(universal_id="1.2.3", universal_id_type="ISO"), scope=replace(SCOPE, authority="urn:oid:1.9")
        )
        assert match.system == "urn:oid:1.2.3"

    def test_rule_2_an_authority_of_some_instances_is_that_of_the_study(self) -> None:
        match = match_one(evidence(), evidence(universal_id="1.2.3", universal_id_type="ISO"))
        assert summarise(match) == ("authority", "urn:oid:1.2.3", "P-1", "ok")

    def test_rule_2_subjects_may_share_a_patient_id(self) -> None:
        scope = replace(SCOPE, authority="urn:oid:1.9")
        matches = match_patients([evidence(), evidence(study_uid="1.2", subject="sub-2")], scope)
        assert [summarise(match) for match in matches] == [("authority", "urn:oid:1.9", "P-1", "ok")] * 2

    def test_rule_2_does_not_apply_if_the_identity_was_removed(self) -> None:
        match = match_one(evidence(identity_removed=True), scope=replace(SCOPE, authority="urn:oid:1.9"))
        assert summarise(match) == ("patient-id", "https://site.example/breast/patient-id", "P-1", "ok")

    def test_rule_3_patient_id_within_its_dataset(self) -> None:
        assert summarise(match_one(evidence())) == ("patient-id", "https://site.example/breast/patient-id", "P-1", "ok")

    def test_rule_3_studies_of_a_subject_share_a_patient(self) -> None:
        matches = match_patients([evidence(), evidence(study_uid="1.2")], SCOPE)
        assert [(match.study_uid, match.rule, match.value) for match in matches] == [
            ("1.1", "patient-id", "P-1"),
            ("1.2", "patient-id", "P-1"),
        ]

    @pytest.mark.parametrize(
        ("patient_id", "reason"), [(None, None), ("", None), ("ANONYMOUS", "patient-id-placeholder")]
    )
    def test_rule_4_subject_if_the_patient_id_identifies_nobody(
        self, patient_id: str | None, reason: str | None
    ) -> None:
        match = match_one(evidence(patient_id=patient_id))
        assert summarise(match) == ("subject", "https://site.example/breast/subject", "sub-1", "ok")
        assert match.reason == reason

    def test_rule_4_subject_if_several_subjects_share_a_patient_id(self) -> None:
        matches = match_patients(
            [evidence(), evidence(study_uid="1.2", subject="sub-2"), evidence(study_uid="1.3", subject="sub-3")], SCOPE
        )
        assert [(p.rule, p.value, p.reason) for p in matches] == [
            ("subject", "sub-1", "patient-id-shared"),
            ("subject", "sub-2", "patient-id-shared"),
            ("subject", "sub-3", "patient-id-shared"),
        ]

    def test_rule_4_does_not_affect_other_patient_ids(self) -> None:
        others = [
            evidence(study_uid="1.2", subject="sub-2"),
            evidence(study_uid="1.3", subject="sub-3", patient_id="P-3"),
        ]
        matches = match_patients([evidence(), *others], SCOPE)
        assert [(p.subject, p.rule) for p in matches] == [
            ("sub-1", "subject"),
            ("sub-2", "subject"),
            ("sub-3", "patient-id"),
        ]

    def test_rule_5_the_study_if_there_is_no_subject_either(self) -> None:
        match = match_one(evidence(subject=None, patient_id=None))
        assert summarise(match) == ("study", "https://site.example/breast/study", "1.1", "ok")
        assert match.reason == "patient-unresolved"

    def test_rule_3_applies_without_a_subject(self) -> None:
        assert match_one(evidence(subject=None)).rule == "patient-id"

    def test_instances_without_patient_id_follow_the_others(self) -> None:
        match = match_one(evidence(), evidence(patient_id=None))
        assert summarise(match) == ("patient-id", "https://site.example/breast/patient-id", "P-1", "ok")
        assert match.reason == "patient-id-incomplete"

    def test_names_of_datasets_are_encoded_in_uris(self) -> None:
        match = match_one(evidence(), scope=MatchingScope("my data/Köln", "https://site.example/", None, {}))
        assert match.system == "https://site.example/my%20data%2FK%C3%B6ln/patient-id"


class TestHeldStudies:
    def test_two_patient_ids(self) -> None:
        match = match_one(evidence(), evidence(patient_id="P-2"))
        assert (match.state, match.reason) == ("held", "study-two-patients")

    def test_two_subjects_hold_the_study_in_both_units(self) -> None:
        matches = match_patients([evidence(), evidence(subject="sub-2")], SCOPE)
        assert [(p.unit, p.building_unit, p.state, p.reason) for p in matches] == [
            ("sub-1", "sub-1", "held", "study-two-subjects"),
            ("sub-2", "sub-2", "held", "study-two-subjects"),
        ]

    def test_a_subject_and_no_subject(self) -> None:
        matches = match_patients([evidence(), evidence(subject=None)], SCOPE)
        assert [(p.unit, p.state) for p in matches] == [(".", "held"), ("sub-1", "held")]

    def test_the_crosswalk_decides_on_two_patient_ids(self) -> None:
        scope = replace(SCOPE, crosswalk={"sub-1": ("urn:x:persons", "p7")})
        assert summarise(match_one(evidence(), evidence(patient_id="P-2"), scope=scope)) == (
            "crosswalk",
            "urn:x:persons",
            "p7",
            "ok",
        )

    def test_the_crosswalk_decides_on_two_subjects(self) -> None:
        patient = ("urn:x:persons", "p7")
        scope = replace(SCOPE, crosswalk={"sub-1": patient, "sub-2": patient})
        matches = match_patients([evidence(subject="sub-2"), evidence()], scope)
        assert [(p.unit, p.building_unit, p.rule, p.value, p.state) for p in matches] == [
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
    def test_an_incomplete_or_contradictory_crosswalk_does_not_decide(
        self,
        crosswalk: dict[str, tuple[str, str]],
    ) -> None:
        matches = match_patients([evidence(), evidence(subject="sub-2")], replace(SCOPE, crosswalk=crosswalk))
        assert [p.state for p in matches] == ["held", "held"]


class TestValues:
    def test_the_order_of_the_evidence_does_not_matter(self) -> None:
        items = [
            evidence(),
            evidence(patient_id=None),
            evidence(study_uid="1.0", subject="sub-2"),
            evidence(study_uid="1.3"),
        ]
        assert match_patients(items, SCOPE) == match_patients(items[::-1], SCOPE)

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
    def test_placeholders(self, patient_id: str) -> None:
        assert is_placeholder(patient_id)

    @pytest.mark.parametrize(
        "patient_id", ["P-1", "0001", "ANON-0042", "TEST1", "patient 7", "X12", "患者一", "Ж", "ك-٧"]
    )
    def test_ids_that_resemble_placeholders_are_ids(self, patient_id: str) -> None:
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
    def test_authority_uri(self, identifier: str | None, kind: str | None, uri: str | None) -> None:
        assert authority_uri(identifier, kind) == uri
