"""Identifiers with signs that mean something in searches and addresses: each matches exactly itself."""

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from dicom_etl.fhir_client import FhirClient, escape_token
from dicom_etl.stages.upload import upload
from tests.servers.hapi_server import HapiServer
from tests.support import server_content
from tests.support.server_content import Resource
from tests.support.upload_lakes import DatasetFactory, Study, new_lake, settings_for

# those of a line turn into each other when something is escaped too often, too seldom, or not exactly compared
CONFUSABLE = (
    ("A|B", "A%7CB", "A\\|B", "A||B"),
    ("A,B", "A\\,B", "A%2CB", "A\\\\,B"),
    ("A$B", "A\\$B", "A%24B"),
    ("A\\B", "A\\\\B", "A%5CB"),
    ("A+B", "A B", "A%20B", "A%2BB", "A  B"),
    ("A&B", "A&amp;B", "A%26B"),
    ("A#B", "A%23B"),
    ("A%B", "A%25B", "100%"),
    ("A/B", "A%2FB", "../A"),
    ("A?B=C;D", "A?B=C", "A?B", "A;D", "A=B", "?", "="),
    ('A"B', "A'B", "A%22B", "A''B"),
    ("Ä-ß-東", "Ä-ss-東", "A\u0308-ß-東", "A-ß-東", "%C3%84-ß-東"),
    ("abc", "ABC", "Abc"),
    (" lead ", "lead"),
    ("A", "B", "AB", "A*B", "A:B", "A<B>"),
)
VALUES = tuple(chain.from_iterable(CONFUSABLE))
ACCESSION = "https://accession.example"


@dataclass(frozen=True)
class AccessionFactory(DatasetFactory):
    """Studies whose accession number is as hard as their person's identifier."""

    def imaging_study(self, dataset: str, study: Study) -> Resource:
        resource = super().imaging_study(dataset, study)
        resource["identifier"].append({"system": f"{ACCESSION}/{self.name}", "value": study.person})
        return resource


def studies_of(values: Iterable[str], rule: str, first: int = 0) -> list[Study]:
    return [Study(str(number), value, rule=rule) for number, value in enumerate(values, first)]


def store_external(url: str, factory: DatasetFactory, values: Sequence[str]) -> dict[str, str]:
    """Store Patients as another client; returns the ids that the server gave them, by value."""
    entries = [
        {
            "resource": {
                "resourceType": "Patient",
                "identifier": [{"system": factory.authority, "value": value}],
            },
            "request": {"method": "POST", "url": "Patient"},
        }
        for value in values
    ]
    answer = server_content.post(url, {"resourceType": "Bundle", "type": "batch", "entry": entries})
    locations = [entry["response"]["location"] for entry in answer["entry"]]
    return dict(zip(values, (location.split("/")[1] for location in locations), strict=True))


def subjects(url: str, factory: DatasetFactory, dataset: str, studies: Sequence[Study]) -> dict[str, str]:
    """By its person's value, to which Patient a study on the server refers."""
    by_id = {factory.study_id(dataset, study.number): study.person for study in studies}
    ids = list(by_id)
    there = [
        study
        for start in range(0, len(ids), 40)
        for study in server_content.search(
            url, f"ImagingStudy?_id={','.join(ids[start : start + 40])}&_elements=subject"
        )
    ]
    return {by_id[study["id"]]: study["subject"]["reference"].removeprefix("Patient/") for study in there}


def holders(url: str, system: str) -> Counter[str]:
    """How many Patients have each value of a system; compared here, and not by the server."""
    patients = server_content.find_by_identifiers(url, "Patient", [(system, "")])
    return Counter(identifier["value"] for patient in patients for identifier in patient["identifier"])


def test_each_identifier_matches_its_own_patient_without_duplicates(hapi: HapiServer, tmp_path: Path) -> None:
    factory, lake = DatasetFactory("identifiers-matched"), new_lake(tmp_path / "lake")
    external_patients = store_external(hapi.base_url, factory, VALUES)
    shared, own = studies_of(VALUES, "authority"), studies_of(VALUES, "patient-id")
    factory.build(lake, "A", shared)
    factory.build(lake, "B", own)

    first, second = upload(["A", "B"], lake, settings_for(hapi.base_url))

    assert first.counts["Patient"] == {"external": len(VALUES)}
    assert subjects(hapi.base_url, factory, "A", shared) == external_patients
    assert holders(hapi.base_url, factory.authority) == Counter(VALUES)
    assert second.counts["Patient"] == {"stored": len(VALUES)}
    assert subjects(hapi.base_url, factory, "B", own) == {one.person: factory.patient_id("B", one) for one in own}
    assert holders(hapi.base_url, factory.identifier("B", own[0])[0]) == Counter(VALUES)


def test_an_identifier_is_never_matched_with_one_that_looks_like_it(hapi: HapiServer, tmp_path: Path) -> None:
    factory, lake = DatasetFactory("identifiers-confusable"), new_lake(tmp_path / "lake")
    external_patients = store_external(hapi.base_url, factory, [values[0] for values in CONFUSABLE])
    studies = studies_of([value for value in VALUES if value not in external_patients], "authority")
    factory.build(lake, "A", studies)

    [done] = upload(["A"], lake, settings_for(hapi.base_url))

    assert done.counts["Patient"] == {"stored": len(studies)}
    assert subjects(hapi.base_url, factory, "A", studies) == {
        one.person: factory.patient_id("A", one) for one in studies
    }
    assert holders(hapi.base_url, factory.authority) == Counter(VALUES)


def test_a_search_for_an_accession_number_finds_one_study(hapi: HapiServer, tmp_path: Path) -> None:
    factory, lake = AccessionFactory("identifiers-accession"), new_lake(tmp_path / "lake")
    studies = studies_of(VALUES, "patient-id")
    factory.build(lake, "A", studies)

    upload(["A"], lake, settings_for(hapi.base_url))

    found = asyncio.run(_studies_of_accessions(hapi.base_url, f"{ACCESSION}/{factory.name}"))
    # HAPI searches without the blanks at both ends, so that "lead" and " lead " are one there
    ids = {
        value: {factory.study_id("A", one.number) for one in studies if one.person.strip() == value.strip()}
        for value in VALUES
    }
    assert found == ids
    assert [value for value in VALUES if len(ids[value]) > 1] == [" lead ", "lead"]


async def _studies_of_accessions(url: str, system: str) -> dict[str, set[str]]:
    found = {}
    async with FhirClient(url) as client:
        for value in VALUES:
            token = f"{escape_token(system)}|{escape_token(value)}"
            found[value] = {study["id"] for study in await client.search("ImagingStudy", {"identifier": token})}
    return found
