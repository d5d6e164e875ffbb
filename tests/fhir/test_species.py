"""Species and gender status. Expected codes are those of PS3.16 CID 7454, NCBI numbers those of its Taxonomy."""

import csv
import re
from importlib.resources import files
from typing import Any

import pytest
from pydicom.sr.codedict import codes

from dicom_etl.fhir.species import is_human, look_up_gender_status, look_up_species
from dicom_etl.fhir.terminology import Coding, convert_coded_entry

SCT = "http://snomed.info/sct"
GENDER_STATUS = "http://hl7.org/fhir/animal-genderstatus"

HUMAN = Coding(SCT, "337915000", "Homo sapiens")
MOUSE = Coding(SCT, "447612001", "Mus musculus")


def table() -> list[dict[str, str]]:
    text = files("dicom_etl.fhir.tables").joinpath("species.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def cid_7454() -> dict[str, str]:
    concepts = codes.cid7454.concepts.values()
    return {concept.value: concept.meaning for concept in concepts if concept.scheme_designator == "SCT"}


def test_every_code_is_one_of_cid_7454_with_its_meaning() -> None:
    assert {row["code"]: row["display"] for row in table()} == cid_7454()
    assert all(row["display"] == cid_7454()[row["code"]] for row in table())


def test_every_meaning_of_cid_7454_is_found() -> None:
    for code, meaning in cid_7454().items():
        assert look_up_species(meaning) == Coding(SCT, code, meaning)


def test_aliases_are_normalized_sorted_and_unique() -> None:
    names = [row["alias"] for row in table()]
    assert all(re.fullmatch(r"[A-Z0-9]+", name) for name in names)
    assert names == sorted(set(names))


@pytest.mark.parametrize(
    "text", ["Mus musculus", "MUS MUSCULUS", " mus_musculus ", "Mouse", "mice", "NCBITaxon:10090", "NCBITaxon_10090"]
)
def test_case_blanks_and_punctuation_are_ignored(text: str) -> None:
    assert look_up_species(text) == MOUSE


@pytest.mark.parametrize(
    ("text", "code", "display"),
    [
        ("Human", "337915000", "Homo sapiens"),
        ("rat", "371565004", "Rattus norvegicus"),
        ("Rattus", "371564000", "Rattus"),
        ("Pig", "78678003", "Sus scrofa"),
        ("Sus scrofa domesticus", "78678003", "Sus scrofa"),
        ("sheep", "125099002", "Ovis aries"),
        ("dog", "448771007", "Canis lupus familiaris"),
        ("CANINE", "388490000", "Canis"),
        ("cat", "448169003", "Felis catus"),
        ("FELINE", "388626009", "Felis"),
        ("rabbit", "36571002", "Oryctolagus cuniculus"),
        ("Guinea pig", "125076001", "Cavia porcellus"),
        ("ferret", "449310008", "Mustela putorius furo"),
        ("cow", "34618005", "Bos taurus"),
        ("BOVINE", "388168008", "Bos"),
        ("horse", "35354009", "Equus caballus"),
        ("EQUINE", "388445009", "Equus"),
        ("goat", "125097000", "Capra hircus"),
        ("common marmoset", "406733009", "Callithrix jacchus"),
    ],
)
def test_a_species_by_name(text: str, code: str, display: str) -> None:
    assert look_up_species(text) == Coding(SCT, code, display)


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (9606, "337915000"),
        (10090, "447612001"),
        (10116, "371565004"),
        (9823, "78678003"),
        (9940, "125099002"),
        (9615, "448771007"),
        (9612, "36855005"),
        (9685, "448169003"),
        (9986, "36571002"),
        (10141, "125076001"),
        (9669, "449310008"),
        (9913, "34618005"),
        (9796, "35354009"),
        (9925, "125097000"),
        (9483, "406733009"),
    ],
)
def test_a_species_by_its_number_in_the_ncbi_taxonomy(number: int, code: str) -> None:
    species = look_up_species(f"NCBITaxon:{number}")
    assert species is not None
    assert species.code == code


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        "-",
        "unknown",
        "Macaca mulatta",  # pydicom's SNOMED CT has no macaque
        "NCBITaxon:9544",
        "murine",  # mouse or rat
        "marmoset",  # several species
        "Sprague Dawley",
        "Human\\Mouse",
        "Mus\\Musculus",
        "Äcat",
        "9606",
    ],
)
def test_a_species_that_is_not_in_the_table_has_no_code(text: str) -> None:
    assert look_up_species(text) is None


@pytest.mark.parametrize(
    ("concept", "human"),
    [
        ({"coding": [HUMAN.as_fhir()]}, True),
        ({"coding": [{"system": SCT, "code": "337915000"}]}, True),
        ({"coding": [{"system": SCT, "code": "30996001"}]}, True),
        ({"coding": [MOUSE.as_fhir()], "text": "mouse"}, False),
        ({"coding": [{"system": "urn:other", "code": "337915000"}]}, False),
        ({"coding": [{"system": "urn:other", "code": "C14225", "display": "Human"}]}, True),
        ({"text": "homo sapiens"}, True),
        ({"text": "axolotl"}, False),
        ({}, False),
    ],
)
def test_human_species(concept: dict[str, Any], human: bool) -> None:
    assert is_human(concept) is human


@pytest.mark.parametrize("code", ["L-85003", "L-85B00"])
def test_the_snomed_rt_codes_of_humans_are_human(code: str) -> None:
    coding = convert_coded_entry(code, "SRT", None)
    assert coding is not None
    assert is_human({"coding": [coding.as_fhir()]})


@pytest.mark.parametrize(
    ("neutered", "status"),
    [
        ("ALTERED", Coding(GENDER_STATUS, "neutered", "Neutered")),
        ("UNALTERED ", Coding(GENDER_STATUS, "intact", "Intact")),
        ("", None),
        ("NEUTERED", None),
    ],
)
def test_gender_status_by_sex_neutered(neutered: str, status: Coding | None) -> None:
    assert look_up_gender_status(neutered) == status
