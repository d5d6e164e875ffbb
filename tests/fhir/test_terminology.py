"""DICOM codes as FHIR Codings. Expected codes are those of PS3.16 Annex L, CID 33 and CID 244."""

import csv
import importlib
import re
import sys
from importlib.resources import files

import pytest

from dicom_etl.fhir import terminology
from dicom_etl.fhir.terminology import (
    CHEST_CODINGS,
    Coding,
    convert_coded_entry,
    convert_sop_class,
    is_paired,
    look_up_body_site,
    look_up_laterality,
    look_up_modality,
    look_up_scheme_uri,
)

SCT = "http://snomed.info/sct"
DCM = "http://dicom.nema.org/resources/ontology/DCM"

CSPINE = Coding(SCT, "122494005", "Cervical spine")


def aliases() -> list[dict[str, str]]:
    text = files("dicom_etl.fhir.tables").joinpath("body_part_aliases.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def test_a_coding_with_display_as_fhir_json() -> None:
    assert Coding(SCT, "76752008", "Breast").as_fhir() == {
        "system": "http://snomed.info/sct",
        "code": "76752008",
        "display": "Breast",
    }


def test_an_unknown_display_is_omitted() -> None:
    assert Coding(SCT, "76752008").as_fhir() == {"system": "http://snomed.info/sct", "code": "76752008"}


@pytest.mark.parametrize(
    ("text", "code", "display"),
    [
        ("CHEST", "816094009", "Chest"),
        ("THORAX", "816094009", "Chest"),
        ("BREAST", "76752008", "Breast"),
        ("HIP", "24136001", "Hip joint"),
        ("LUMEN", "91747007", "Lumen of blood vessel"),
        ("LOWERTRUNK", "63337009", "Lower trunk"),
        ("CTSPINE", "1217257000", "Cervico-thoracic spine"),
    ],
)
def test_a_body_part_is_coded_by_annex_l(text: str, code: str, display: str) -> None:
    assert look_up_body_site(text) == Coding(SCT, code, display)


def words(text: str) -> set[str]:
    return set(re.findall("[a-z0-9]+", text.lower()))


def test_codes_of_annex_l_have_the_meaning_of_their_displays() -> None:
    meanings: dict[str, list[str]] = {}
    for names in importlib.import_module("pydicom.sr._concepts_dict").concepts["SCT"].values():
        for code, (meaning, _) in names.items():
            meanings.setdefault(code, []).append(meaning)

    codings = {term: region.coding for term, region in terminology.read_annex_l().items()}
    differing = {
        term
        for term, coding in codings.items()
        if not any(words(str(coding.display)) <= words(meaning) for meaning in meanings.get(coding.code, []))
    }
    assert differing == {
        "LOWERTRUNK",  # 63337009 and 67734004 are not in pydicom's dictionary
        "UPPERTRUNK",
        "GLUTEAL",  # buttock
        "MORISONSPOUCH",  # Rutherford Morrison's pouch
        "SUPRAPUBIC",  # hypogastric region
    }


@pytest.mark.parametrize("text", ["CHEST", "THORAX", " chest ", "Thorax"])
@pytest.mark.parametrize(("chest", "display"), [("816094009", "Chest"), ("43799004", "Thoracic cavity structure")])
def test_the_code_of_the_chest_can_be_chosen(text: str, chest: str, display: str) -> None:
    assert look_up_body_site(text, chest) == CHEST_CODINGS[chest] == Coding(SCT, chest, display)


@pytest.mark.parametrize(
    ("text", "code"), [("CHESTABDOMEN", "416550000"), ("BREAST", "76752008"), ("CSPINE", "122494005")]
)
def test_the_code_of_the_chest_changes_no_other_region(text: str, code: str) -> None:
    site = look_up_body_site(text, "43799004")
    assert site == look_up_body_site(text)
    assert site is not None
    assert site.code == code


@pytest.mark.parametrize("text", ["CSPINE", "cspine", "C-SPINE", "C Spine", " C_SPINE ", "c.spine"])
def test_case_blanks_and_punctuation_are_ignored(text: str) -> None:
    assert look_up_body_site(text) == CSPINE


@pytest.mark.parametrize("text", ["CERVICAL SPINE", "Cervical-Spine", "CERV SPINE"])
def test_an_alias_has_the_code_of_its_term(text: str) -> None:
    assert look_up_body_site(text) == CSPINE


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("WHOLE BODY", "38266002"),
        ("KIDNEYS", "64033007"),
        ("Breasts", "76752008"),
        ("Chest/Abdomen", "416550000"),
        ("CHEST ABDOMEN PELVIS", "416775004"),
        ("OESOPHAGUS", "32849002"),
        ("LUMBAR SPINE", "122496007"),
        ("L/S SPINE", "1217253001"),
        ("C-T SPINE", "1217257000"),
    ],
)
def test_readable_forms_of_a_term_are_found(text: str, code: str) -> None:
    site = look_up_body_site(text)
    assert site is not None
    assert site.code == code


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "-",
        "UNKNOWN",
        "LEG",  # lower leg or lower limb
        "ARM",
        "LEFT KNEE",
        "BRUST",
        "CT SPINE",  # not the cervico-thoracic spine
        "CT_SPINE",
        "HEAD\\NECK",  # two values, not the region Head and Neck
        "KOPFÄHEAD",
        "ÄCHEST",
    ],
)
def test_an_ambiguous_body_part_has_no_code(text: str) -> None:
    assert look_up_body_site(text) is None
    assert is_paired(text) is None


def test_every_alias_is_normalized_and_has_a_term() -> None:
    for row in aliases():
        assert re.fullmatch(r"[A-Z0-9]+", row["alias"])
        assert look_up_body_site(row["alias"]) == look_up_body_site(row["term"]) is not None


def test_no_alias_is_a_term_and_all_are_sorted_and_unique() -> None:
    names = [row["alias"] for row in aliases()]
    assert names == sorted(set(names))
    assert not set(names) & set(terminology.read_annex_l())
    assert {row["term"] for row in aliases()} <= set(terminology.read_annex_l())


@pytest.mark.parametrize(
    ("text", "paired"),
    [
        ("KIDNEY", True),
        ("Knees", True),
        ("BREAST", True),
        ("CHEST", False),
        ("LIVER", False),
        ("TEETH", None),
    ],
)
def test_paired_body_parts(text: str, paired: bool | None) -> None:
    assert is_paired(text) is paired


def test_terms_with_one_code_can_differ_in_being_paired() -> None:
    assert look_up_body_site("URETER") == Coding(SCT, "87953007", "Ureter")
    assert look_up_body_site("ENDOURETERIC") == Coding(SCT, "87953007", "Endo-ureteric")
    assert is_paired("URETER") is True
    assert is_paired("ENDOURETERIC") is False


@pytest.mark.parametrize(
    ("code", "display"),
    [
        ("CT", "Computed Tomography"),
        ("MR", "Magnetic Resonance"),
        ("PT", "Positron emission tomography"),
        ("SEG", "Segmentation"),
        ("MG ", "Mammography"),
    ],
)
def test_a_modality_is_coded_by_cid_33(code: str, display: str) -> None:
    assert look_up_modality(code) == Coding(DCM, code.strip(), display)


@pytest.mark.parametrize("code", ["", "MRI", "mr", "PET", "DS", "ST", "CTX"])
def test_retired_and_invented_modalities_have_no_code(code: str) -> None:
    assert look_up_modality(code) is None


@pytest.mark.parametrize(
    ("code", "coding"),
    [
        ("R", Coding(SCT, "24028007", "Right")),
        ("L", Coding(SCT, "7771000", "Left")),
        ("B", Coding(SCT, "51440002", "Right and left")),
        ("R ", Coding(SCT, "24028007", "Right")),
    ],
)
def test_right_left_and_both_have_codes_of_cid_244(code: str, coding: Coding) -> None:
    assert look_up_laterality(code) == coding


@pytest.mark.parametrize("code", ["U", "", "RL", "r", "RIGHT", "M"])
def test_other_lateralities_have_no_code(code: str) -> None:
    assert look_up_laterality(code) is None


def test_a_sop_class_is_an_oid_with_its_name() -> None:
    assert convert_sop_class("1.2.840.10008.5.1.4.1.1.4") == Coding(
        "urn:ietf:rfc:3986", "urn:oid:1.2.840.10008.5.1.4.1.1.4", "MR Image Storage"
    )


def test_a_private_sop_class_has_no_display() -> None:
    assert convert_sop_class("1.3.12.2.1107.5.9.1") == Coding("urn:ietf:rfc:3986", "urn:oid:1.3.12.2.1107.5.9.1")


@pytest.mark.parametrize(
    ("designator", "uri"),
    [
        ("DCM", "http://dicom.nema.org/resources/ontology/DCM"),
        ("SCT", "http://snomed.info/sct"),
        ("LN", "http://loinc.org"),
        ("RADLEX", "http://radlex.org"),
        ("UCUM ", "http://unitsofmeasure.org"),
        ("I10", "http://hl7.org/fhir/sid/icd-10"),
        ("SRT", None),
        ("99GEMS", None),
        ("", None),
    ],
)
def test_the_uri_of_a_coding_scheme(designator: str, uri: str | None) -> None:
    assert look_up_scheme_uri(designator) == uri


def test_a_coded_entry_keeps_its_code_and_meaning() -> None:
    assert convert_coded_entry("24627-2 ", "LN", " CT Chest ") == Coding("http://loinc.org", "24627-2", "CT Chest")


@pytest.mark.parametrize(
    ("code", "designator"), [("51185008", "SCT"), ("T-D3000", "SRT"), ("T-D3000", "SNM3"), ("T-D3000", "99SDM")]
)
def test_the_thorax_of_older_headers_keeps_its_own_code(code: str, designator: str) -> None:
    assert convert_coded_entry(code, designator, "Thoracic structure") == Coding(SCT, "51185008", "Thoracic structure")


@pytest.mark.parametrize("meaning", [None, "", "  "])
def test_a_coded_entry_without_meaning_has_no_display(meaning: str | None) -> None:
    assert convert_coded_entry("113014", "DCM", meaning) == Coding(DCM, "113014", None)


@pytest.mark.parametrize("designator", ["SRT", "SNM3", "99SDM"])
def test_a_snomed_rt_code_is_converted_to_snomed_ct(designator: str) -> None:
    assert convert_coded_entry("T-04000", designator, "Breast") == Coding(SCT, "76752008", "Breast")


@pytest.mark.parametrize(
    ("code", "designator"),
    [("T-99999", "SRT"), ("76752008", "SRT"), ("", "SCT"), ("", "SRT"), ("12", "99LOCAL"), ("12", "")],
)
def test_an_ambiguous_coded_entry_is_not_converted(code: str, designator: str) -> None:
    assert convert_coded_entry(code, designator, "Something") is None


def test_without_pydicoms_mapping_snomed_rt_codes_are_not_converted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydicom.sr._snomed_dict", None)
    terminology.read_snomed_ct_by_rt.cache_clear()
    try:
        assert convert_coded_entry("T-04000", "SRT", "Breast") is None
    finally:
        terminology.read_snomed_ct_by_rt.cache_clear()
