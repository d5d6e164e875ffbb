"""The mapping table: it is complete and agrees with the rules."""

import re
from dataclasses import replace

import pytest

from dicom_etl.fhir import imaging_study, mapping, patient
from dicom_etl.findings import finding_codes
from dicom_etl.headers.catalogue import catalogue, columns_by_name
from tests.support.header_rows import CONTEXT, codes_and_tags, header_rows, new_findings

RULES = {
    "study": imaging_study.RULES,
    "series": imaging_study.RULES,
    "patient": patient.RULES | {"person": None},
}


def test_every_rule_of_the_table_exists() -> None:
    named = {(line.level, line.rule) for line in mapping.read_mapping() if line.rule not in ("", mapping.COMPUTED)}
    assert {level for level, _ in named} == set(RULES)
    assert [(level, rule) for level, rule in sorted(named) if rule not in RULES[level]] == []


def rules_of_version(version: mapping.Version) -> list[tuple[str, mapping.Element]]:
    return [(level, element) for level in RULES for element in mapping.list_elements(level, version)]


@pytest.mark.parametrize(
    ("level", "element"),
    [
        case
        for version in ("R4", "R5")
        for case in rules_of_version(version)  # type: ignore[arg-type]  # both are versions
        if case[1].rule in mapping.NEED_VALUES
    ],
)
@pytest.mark.parametrize("instances", [1, 3])
def test_a_rule_that_needs_values_has_no_result_without_them(
    level: str, element: mapping.Element, instances: int
) -> None:
    sheets = {"sample anatomical location": "knee", "laterality": "left"}
    context = replace(
        CONTEXT,
        staff_names=True,
        contact_details=True,
        subject_sheet={"sex": "m", "species": "rat", "date of birth": "1966-03-12"},
        sample_sheets={"": sheets, "sam-1": sheets},
    )
    findings = new_findings()
    value = RULES[level][element.rule](
        header_rows(*({"sample": "sam-1"},) * instances), element.columns, context, findings
    )
    assert value is None or value == []
    assert codes_and_tags(findings) == []


def test_elements_without_the_values_that_they_need_are_skipped() -> None:
    empty = frozenset({"StudyDescription", "SeriesDescription", "BodyPartExamined", "SeriesNumber"})
    names = {element.name for element in mapping.list_elements("series", "R4")}
    names_with_values = {element.name for element in mapping.list_elements_with_values("series", "R4", empty)}
    assert names - names_with_values == {"description", "number"}


def test_every_column_is_in_the_header_table() -> None:
    assert {column for line in mapping.read_mapping() for column in line.columns} <= columns_by_name().keys()


def test_tags_for_fhir_are_mapped_or_listed_as_omitted() -> None:
    meant = {
        column.name for column in catalogue() if re.match(r"ImagingStudy|Patient |Patient\.|Device", column.used_for)
    }
    assert meant - {column for line in mapping.read_mapping() for column in line.columns} == set()


def test_every_omitted_element_has_a_reason() -> None:
    omitted = [line for line in mapping.read_mapping() if not line.rule]
    assert len(omitted) > 10
    assert [line for line in omitted if not line.how.startswith("omitted")] == []


def test_every_finding_code_in_the_table_exists() -> None:
    text = " ".join(" ".join((line.how, line.absent, line.invalid)) for line in mapping.read_mapping())
    named = set(re.findall(r"\b[a-z]+(?:-[a-z]+)+\b", text))
    assert named & finding_codes().keys() >= {
        "value-omitted",
        "value-from-sheet",
        "laterality-conflict",
        "coding-scheme-unknown",
    }
    assert {
        word for word in named if word.endswith(("-omitted", "-excluded", "-unmapped", "-conflict"))
    } <= finding_codes().keys()


@pytest.mark.parametrize(
    ("type_", "value", "form"),
    [
        ("Coding", {"coding": [{"code": "MR"}]}, {"code": "MR"}),
        ("Coding", {"text": "LEG"}, {"display": "LEG"}),
        ("CodeableConcept", {"text": "LEG"}, {"text": "LEG"}),
        ("CodeableReference", {"coding": [{"code": "MR"}]}, {"concept": {"coding": [{"code": "MR"}]}}),
        ("string", "LEG", "LEG"),
        ("Coding", {"system": "s", "code": "c"}, {"system": "s", "code": "c"}),
    ],
)
def test_a_concept_is_converted_to_the_type_of_its_element(type_: str, value: object, form: object) -> None:
    assert mapping.convert_concept(value, type_) == form


def test_elements_differ_between_versions_as_specified() -> None:
    def names(version: mapping.Version) -> set[str]:
        return {element.name for element in mapping.list_elements("study", version)}

    assert names("R4") - names("R5") == {"interpreter", "procedureCode", "reasonCode"}
    assert names("R5") - names("R4") == {"basedOn", "procedure", "reason"}
