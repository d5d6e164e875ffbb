"""The committed tables of the standard, and how they are derived. Needs no highdicom."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from scripts import derive_standard_tables as script

ROOT = Path(__file__).resolve().parents[2]
ANNEX_L = ROOT / "dicom_etl/fhir/tables/annex_l.json"
REQUIREMENTS = ROOT / "dicom_etl/quality/tables/requirements.json"


@pytest.fixture(scope="module")
def annex_l() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(ANNEX_L.read_bytes())
    return table


@pytest.fixture(scope="module")
def requirements() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(REQUIREMENTS.read_bytes())
    return table


def type_in(requirements: dict[str, Any], module: str, tag: str) -> str | None:
    types = [type_ for type_, tags in requirements["modules"][module].items() if tag in tags]
    assert len(types) <= 1
    return types[0] if types else None


@pytest.mark.parametrize(
    ("path", "standard"),
    [(ANNEX_L, "PS3.16 Annex L"), (REQUIREMENTS, "PS3.3 Annex A and C, PS3.4 Annex B")],
)
def test_a_table_says_where_it_comes_from(path: Path, standard: str) -> None:
    table = json.loads(path.read_bytes())
    assert list(table)[:4] == ["source", "version", "licence", "standard"]
    assert table["source"] == "highdicom"
    assert table["version"] == "0.28.2"
    assert table["licence"] == "MIT, Copyright 2020 MGH Computational Pathology, see NOTICE"
    assert table["standard"] == standard


def test_the_notice_names_both_tables_and_carries_the_licence() -> None:
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    assert "dicom_etl/fhir/tables/annex_l.json" in notice
    assert "dicom_etl/quality/tables/requirements.json" in notice
    assert "Copyright 2020 MGH Computational Pathology" in notice
    assert "The above copyright notice and this permission notice shall be included in all copies" in notice


@pytest.mark.parametrize("path", [ANNEX_L, REQUIREMENTS])
def test_a_table_is_written_as_the_script_writes_it(path: Path) -> None:
    text = path.read_bytes().decode("ascii")
    assert script.render(json.loads(text)) == text


def test_annex_l_has_317_terms_of_which_134_are_paired(annex_l: dict[str, Any]) -> None:
    assert len(annex_l["terms"]) == 317
    assert sum(paired for _, _, paired in annex_l["terms"].values()) == 134
    assert list(annex_l["terms"]) == sorted(annex_l["terms"])


@pytest.mark.parametrize(
    ("term", "entry"),
    [
        ("CHEST", ["816094009", "Chest", False]),
        ("THORAX", ["816094009", "Chest", False]),
        ("BREAST", ["76752008", "Breast", True]),
        ("KIDNEY", ["64033007", "Kidney", True]),
        ("LSPINE", ["122496007", "Lumbar spine", False]),
        ("HIP", ["24136001", "Hip joint", True]),
        ("WHOLEBODY", ["38266002", "Entire body", False]),
    ],
)
def test_entries_of_annex_l(annex_l: dict[str, Any], term: str, entry: list[str | bool]) -> None:
    assert annex_l["terms"][term] == entry


def test_all_codes_of_annex_l_but_two_stand_in_pydicoms_snomed_dictionary(annex_l: dict[str, Any]) -> None:
    concepts = importlib.import_module("pydicom.sr._concepts_dict").concepts
    known = {code for codes in concepts["SCT"].values() for code in codes}
    unknown = {term for term, (code, _, _) in annex_l["terms"].items() if code not in known}
    assert unknown == {"LOWERTRUNK", "UPPERTRUNK"}


def test_180_sop_classes_lead_to_171_iods_and_their_modules(requirements: dict[str, Any]) -> None:
    sop_classes, iods = requirements["sop_classes"], requirements["iods"]
    assert len(sop_classes) == 180
    assert len(iods) == 171
    assert set(sop_classes.values()) == set(iods)
    named = {module for usages in iods.values() for modules in usages.values() for module in modules}
    assert named == set(requirements["modules"])


@pytest.mark.parametrize(
    ("uid", "iod"),
    [
        ("1.2.840.10008.5.1.4.1.1.2", "ct-image"),
        ("1.2.840.10008.5.1.4.1.1.4", "mr-image"),
        ("1.2.840.10008.5.1.4.1.1.4.1", "enhanced-mr-image"),
        ("1.2.840.10008.5.1.4.1.1.66.4", "segmentation"),
        ("1.2.840.10008.5.1.4.1.1.128", "positron-emission-tomography-image"),
    ],
)
def test_the_iod_of_a_sop_class(requirements: dict[str, Any], uid: str, iod: str) -> None:
    assert requirements["sop_classes"][uid] == iod


@pytest.mark.parametrize(
    ("module", "tag", "keyword", "type_"),
    [
        ("ct-image", "00180060", "KVP", "2"),
        ("mr-image", "00180081", "EchoTime", "2"),
        ("mr-image", "00180080", "RepetitionTime", "2C"),
        ("patient", "00100020", "PatientID", "2"),
        ("sop-common", "00080018", "SOPInstanceUID", "1"),
        ("general-series", "00080060", "Modality", "1"),
        ("general-series", "00180015", "BodyPartExamined", "3"),
        ("general-series", "00200060", "Laterality", "2C"),
        ("cr-series", "00180015", "BodyPartExamined", "2"),
        ("image-plane", "00280030", "PixelSpacing", "1"),
        ("overlay-plane", "60xx3000", "OverlayData", "1"),
        ("overlay-plane", "60xx1301", "ROIArea", "3"),
        ("general-study", "00080100", "CodeValue, which stands in sequences only", None),
        ("ct-image", "00180081", "EchoTime", None),
    ],
)
def test_the_type_of_an_attribute_in_a_module(
    requirements: dict[str, Any], module: str, tag: str, keyword: str, type_: str | None
) -> None:
    assert type_in(requirements, module, tag) == type_, keyword


def test_the_usage_of_modules_by_ct(requirements: dict[str, Any]) -> None:
    usages = requirements["iods"]["ct-image"]
    assert {"patient", "image-plane", "frame-of-reference", "ct-image"} <= set(usages["M"])
    assert usages["C"] == ["contrast-bolus", "multi-energy-ct-image", "synchronization"]
    assert {"patient-study", "overlay-plane", "voi-lut"} <= set(usages["U"])


def test_modules_that_highdicom_names_without_describing(requirements: dict[str, Any]) -> None:
    undescribed = {module for module, by_type in requirements["modules"].items() if not by_type}
    assert undescribed == {
        "displayed-waveform-segment",
        "montage-activation",
        "structured-waveform-annotation",
        "textual-waveform-annotation",
        "waveform-presentation-montage",
        "waveform-presentation-state-relationship",
    }


def attribute(keyword: str, type_: str | None, *path: str) -> dict[str, Any]:
    return {"keyword": keyword, "type": type_, "path": list(path)}


def test_only_used_modules_and_their_typed_top_level_attributes_are_kept() -> None:
    table = script.derive_requirements(
        {"1.2.10": "b-image", "1.2.9": "b-image"},
        {
            "a-image": [{"key": "a", "usage": "M", "ie": "Image"}],
            "b-image": [{"key": "c", "usage": "U", "ie": "Image"}, {"key": "b", "usage": "M", "ie": "Image"}],
        },
        {
            "a": [attribute("Modality", "1")],
            "b": [
                attribute("Rows", "1"),
                attribute("PatientID", "2"),
                attribute("Modality", "1"),
                attribute("StudyID", None),
                attribute("KVP", "3", "AcquisitionContextSequence"),
            ],
        },
        "9.9",
    )
    assert table == {
        "source": "highdicom",
        "version": "9.9",
        "licence": "MIT, Copyright 2020 MGH Computational Pathology, see NOTICE",
        "standard": "PS3.3 Annex A and C, PS3.4 Annex B",
        "sop_classes": {"1.2.9": "b-image", "1.2.10": "b-image"},
        "iods": {"b-image": {"M": ["b"], "U": ["c"]}},
        "modules": {"b": {"1": ["00080060", "00280010"], "2": ["00100020"]}, "c": {}},
    }
    assert list(table["sop_classes"]) == ["1.2.9", "1.2.10"]


def test_a_table_has_one_line_for_each_entry() -> None:
    assert script.render({"source": "x", "terms": {"A": ["1", "a", True], "B": ["2", "b", False]}}) == (
        '{\n"source": "x",\n"terms": {\n"A": ["1","a",true],\n"B": ["2","b",false]\n}\n}\n'
    )


@pytest.mark.parametrize(
    ("keyword", "tag"),
    [
        ("Modality", "00080060"),
        ("SeriesInstanceUID", "0020000E"),
        ("OverlayRows", "60xx0010"),
        ("PixelData", "7FE00010"),
    ],
)
def test_the_tag_of_a_keyword(keyword: str, tag: str) -> None:
    assert script.format_tag(keyword) == tag


def test_data_of_another_shape_is_refused() -> None:
    with pytest.raises(script.SourceDataError, match="NoSuchAttribute"):
        script.format_tag("NoSuchAttribute")
    with pytest.raises(script.SourceDataError, match="CHEST"):
        script.derive_annex_l({"CHEST": ["SRT", "T-D3000", "Chest", False]}, "9.9")
    iods = {"i": [{"key": "m", "usage": "M"}]}
    with pytest.raises(script.SourceDataError, match="4"):
        script.derive_requirements({"1.2": "i"}, iods, {"m": [attribute("KVP", "4")]}, "9.9")
    iods = {"i": [{"key": "m", "usage": "X"}]}
    with pytest.raises(script.SourceDataError, match="X"):
        script.derive_requirements({"1.2": "i"}, iods, {}, "9.9")


def test_a_difference_from_the_committed_tables_is_reported_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "derive", lambda: {Path("table.json"): "new\n"})
    (tmp_path / "table.json").write_bytes(b"old\n")
    assert script.main(["--check", "--root", str(tmp_path)]) == 1
    assert (tmp_path / "table.json").read_bytes() == b"old\n"
    assert script.main(["--root", str(tmp_path)]) == 0
    assert (tmp_path / "table.json").read_bytes() == b"new\n"
    assert script.main(["--check", "--root", str(tmp_path)]) == 0
