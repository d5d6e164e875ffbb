"""Masking of identifying values, and cleaning of text, before either is displayed.

Findings, logs, reports and Dagster metadata contain values of tags only as `mask_value` returns them. Tables of the
lake that hold header rows are not masked: they are the data.

`IDENTIFYING_KEYWORDS` is the only list of tags whose values are masked. A tag that is added to the catalogue
(`headers/catalogue.csv`: the columns of the header table) and names a person, a place or a device also belongs here.
Pseudonymisation of header values will belong here too.

Not here: redaction of what a FHIR server answers (`fhir_client.redaction`), and the placeholders that de-identification
leaves in headers (`quality/tables/placeholders.json`).
"""

from __future__ import annotations

IDENTIFYING_KEYWORDS = frozenset(
    """
    PatientName PatientID OtherPatientIDs OtherPatientNames PatientBirthDate PatientBirthTime PatientBirthName
    PatientMotherBirthName PatientAddress PatientTelephoneNumbers MilitaryRank EthnicGroup Occupation
    PatientComments AdditionalPatientHistory AccessionNumber StudyID AdmissionID MedicalRecordLocator
    ReferringPhysicianName PerformingPhysicianName NameOfPhysiciansReadingStudy OperatorsName
    PhysiciansOfRecord RequestingPhysician InstitutionName InstitutionAddress InstitutionalDepartmentName
    IssuerOfPatientID DeviceSerialNumber StationName
    """.split()
)
MASKED = "(masked)"
_MAX_LENGTH = 120


def mask_value(keyword: str, value: str) -> str:
    """The `value` of the tag `keyword` as it may be displayed: masked if the tag is identifying, else cleaned."""
    return MASKED if keyword in IDENTIFYING_KEYWORDS else clean_text(value)


def clean_text(text: str) -> str:
    """Text of unknown origin in displayable form: no control characters, at most 120 characters."""
    clean = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return clean if len(clean) <= _MAX_LENGTH else clean[: _MAX_LENGTH - 1] + "…"
