"""The one seam that decides what may be shown of identifying values.

Findings, logs, reports and Dagster show a tag's value only through `shown`. Tables of the lake that hold header
rows are not masked: they are the data. Pseudonymisation belongs here too.
"""

from __future__ import annotations

IDENTIFYING = frozenset(
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
_LONGEST = 120


def shown(keyword: str, value: str) -> str:
    """`value` of the tag `keyword` as it may stand in a finding: masked where it identifies, cut where long."""
    if keyword in IDENTIFYING:
        return MASKED
    clean = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in value)
    return clean if len(clean) <= _LONGEST else clean[: _LONGEST - 1] + "…"
