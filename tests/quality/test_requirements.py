"""What applies to an instance. Types are those of PS3.3; tags are written with their keyword beside them."""

import pytest

from dicom_etl.quality.requirements import (
    Fulfilment,
    Requirement,
    Status,
    applicable,
    fulfilment,
    iod_of,
    standard_tag,
)

CR = "1.2.840.10008.5.1.4.1.1.1"
DX = "1.2.840.10008.5.1.4.1.1.1.1"
CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"
ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"
US = "1.2.840.10008.5.1.4.1.1.6.1"
GRAYSCALE_PRESENTATION_STATE = "1.2.840.10008.5.1.4.1.1.11.1"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
MULTI_FRAME_GRAYSCALE_BYTE_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7.2"
PARAMETRIC_MAP = "1.2.840.10008.5.1.4.1.1.30"
COMPREHENSIVE_SR = "1.2.840.10008.5.1.4.1.1.88.33"
RETIRED_ULTRASOUND = "1.2.840.10008.5.1.4.1.1.6"

NOTHING: frozenset[str] = frozenset()


def types(sop_class: str, *present: str) -> dict[str, Requirement]:
    answer = applicable(sop_class, frozenset(present))
    assert answer is not None
    return dict(answer)


@pytest.mark.parametrize(
    ("sop_class", "iod"),
    [
        (CT, "ct-image"),
        (DX, "digital-x-ray-image"),
        ("1.2.840.10008.5.1.4.1.1.1.1.1", "digital-x-ray-image"),
        (COMPREHENSIVE_SR, "comprehensive-sr"),
    ],
)
def test_a_sop_class_has_an_iod(sop_class: str, iod: str) -> None:
    assert iod_of(sop_class) == iod


@pytest.mark.parametrize("sop_class", ["", "1.2.3", RETIRED_ULTRASOUND, "1.2.840.10008.1.2.1"])
def test_unknown_and_retired_sop_classes_are_unclassified(sop_class: str) -> None:
    assert iod_of(sop_class) is None
    assert applicable(sop_class, NOTHING) is None


@pytest.mark.parametrize(
    ("sop_class", "tag", "keyword", "type_"),
    [
        (CT, "00080018", "SOPInstanceUID", "1"),
        (CT, "00080060", "Modality", "1"),
        (CT, "00100020", "PatientID", "2"),
        (CT, "00080020", "StudyDate", "2"),
        (CT, "00180060", "KVP", "2"),
        (CT, "00180050", "SliceThickness", "2"),
        (CT, "00280030", "PixelSpacing", "1"),
        (CT, "00180015", "BodyPartExamined", "3"),
        (CT, "00200060", "Laterality", "2C"),
        (CT, "00080201", "TimezoneOffsetFromUTC", "3"),
        (CT, "00120063", "DeidentificationMethod", "1C"),
        (MR, "00180081", "EchoTime", "2"),
        (MR, "00180080", "RepetitionTime", "2C"),
        (MR, "00180087", "MagneticFieldStrength", "3"),
        (CR, "00180015", "BodyPartExamined", "2"),
        (DX, "00200062", "ImageLaterality", "1"),
        (DX, "00082218", "AnatomicRegionSequence", "2"),
        (ENHANCED_MR, "00280008", "NumberOfFrames", "1"),
    ],
)
def test_mandatory_modules_count_always(sop_class: str, tag: str, keyword: str, type_: Requirement) -> None:
    assert types(sop_class)[tag] == type_, keyword


def test_a_tag_in_several_modules_has_the_strictest_type() -> None:
    # ImageType: Type 3 in General Image, 1 in CT Image and MR Image, 2 in US Image, 3 alone in CR.
    image_type = "00080008"
    assert types(CT)[image_type] == "1"
    assert types(US)[image_type] == "2"
    assert types(CR)[image_type] == "3"
    # Manufacturer: Type 2 in General Equipment, 1 in Enhanced General Equipment.
    assert types(MR)["00080070"] == "2"
    assert types(ENHANCED_MR)["00080070"] == "1"


def test_an_attribute_of_another_iod_does_not_apply() -> None:
    assert "00180060" not in types(MR)  # KVP
    assert "00180081" not in types(CT)  # EchoTime
    assert "00180060" not in types(MR, "00180060")


def test_an_optional_module_counts_once_one_of_its_attributes_is_present() -> None:
    patient_age, patient_weight = "00101010", "00101030"  # Patient Study, usage U
    assert patient_weight not in types(CT)
    assert types(CT, patient_age)[patient_weight] == "3"


def test_a_conditional_module_counts_once_one_of_its_attributes_is_present() -> None:
    contrast_agent, contrast_route = "00180010", "00181040"  # Contrast/Bolus, usage C
    assert contrast_agent not in types(CT)
    assert types(CT, contrast_route)[contrast_agent] == "2"


def test_an_attribute_that_a_mandatory_module_holds_speaks_for_no_other_module() -> None:
    # ICCProfile: Type 3 in Image Pixel (mandatory), 1 in ICC Profile (usage U, and nothing else of its own).
    icc_profile = "00282000"
    assert types(SECONDARY_CAPTURE, icc_profile)[icc_profile] == "3"


def test_a_frame_of_reference_is_asked_for_where_it_is_mandatory_or_in_use() -> None:
    frame_of_reference, position_reference_indicator = "00200052", "00201040"
    assert types(CT)[frame_of_reference] == "1"
    assert frame_of_reference not in types(SECONDARY_CAPTURE)
    assert types(SECONDARY_CAPTURE, frame_of_reference)[position_reference_indicator] == "2"


def test_a_shared_attribute_speaks_for_that_module_which_is_in_use() -> None:
    # ShutterShape stands in Display Shutter and in Bitmap Display Shutter.
    shutter_shape, left_edge, shutter_overlay_group = "00181600", "00181602", "00181623"
    rectangular = types(GRAYSCALE_PRESENTATION_STATE, shutter_shape, left_edge)
    assert rectangular[shutter_shape] == "1"
    assert shutter_overlay_group not in rectangular
    bitmap = types(GRAYSCALE_PRESENTATION_STATE, shutter_shape, shutter_overlay_group)
    assert bitmap[shutter_shape] == "1"
    assert left_edge not in bitmap


def test_of_modules_that_cannot_be_told_apart_what_all_ask_counts_and_the_rest_is_conditional() -> None:
    # A parametric map has one of three image pixel modules: of integers, of floats, of doubles.
    rows, columns, pixel_representation, high_bit = "00280010", "00280011", "00280103", "00280102"
    of_any_kind = types(PARAMETRIC_MAP, rows)
    assert of_any_kind[columns] == "1"
    assert of_any_kind[pixel_representation] == "1C"
    of_integers = types(PARAMETRIC_MAP, rows, pixel_representation)
    assert of_integers[columns] == "1"
    assert of_integers[pixel_representation] == "1"
    assert of_integers[high_bit] == "1"


def test_a_module_that_may_be_in_use_weakens_no_mandatory_attribute() -> None:
    # RepresentativeFrameNumber stands in two modules; one of them has InstanceNumber as Type 1.
    representative_frame, instance_number = "00286010", "00200013"
    answer = types(MULTI_FRAME_GRAYSCALE_BYTE_SECONDARY_CAPTURE, representative_frame)
    assert answer[instance_number] == "2"


def test_overlay_attributes_are_listed_for_each_overlay_that_is_present() -> None:
    answer = types(CT, "60000010", "60020010")
    assert answer["60000011"] == "1"  # OverlayColumns
    assert answer["60023000"] == "1"  # OverlayData
    assert "60040011" not in answer
    assert not any("x" in tag for tag in answer)


@pytest.mark.parametrize("tag", ["60010010", "50000005", "00090010"])
def test_without_an_overlay_no_overlay_attribute_is_listed(tag: str) -> None:
    assert not any(listed.startswith("60") for listed in types(CT, tag))


def test_an_overlay_attribute_of_a_mandatory_module_needs_an_overlay() -> None:
    assert "60000045" not in types(US)  # OverlaySubtype, Type 1C in US Image
    assert types(US, "60000045")["60000045"] == "1C"


def test_private_and_foreign_tags_change_nothing() -> None:
    assert types(CT, "00091001", "300A0002", "7FE00010") == types(CT)


def test_pixel_data_is_out_of_sight() -> None:
    assert "7FE00010" not in types(CT)
    assert max(types(CT)) < "7FE00000"


def test_the_root_of_a_document_is_a_container() -> None:
    answer = types(COMPREHENSIVE_SR)
    assert answer["0040A040"] == "1"  # ValueType
    assert answer["0040A050"] == "1"  # ContinuityOfContent
    assert answer["0040A168"] == "1C"  # ConceptCodeSequence, for CODE
    assert answer["0040A300"] == "2C"  # MeasuredValueSequence, for NUM


def test_equal_layouts_get_one_answer_in_the_order_of_tags() -> None:
    present = frozenset({"00101010"})
    answer = applicable(CT, present)
    assert answer is not None
    assert applicable(CT, frozenset({"00101020"})) is answer  # another attribute of the same module
    assert list(answer) == sorted(answer)


def test_the_answer_cannot_be_changed() -> None:
    answer = applicable(CT, NOTHING)
    with pytest.raises(TypeError):
        answer["00100010"] = "3"  # type: ignore[index]


@pytest.mark.parametrize(
    ("requirement", "absent", "empty", "filled"),
    [
        ("1", "unmet", "unmet", "met"),
        ("1C", "unknown", "unmet", "met"),
        ("2", "unmet", "met", "met"),
        ("2C", "unknown", "met", "met"),
        ("3", "optional", "optional", "optional"),
    ],
)
def test_fulfilment_by_type_and_status(
    requirement: Requirement, absent: Fulfilment, empty: Fulfilment, filled: Fulfilment
) -> None:
    expected: dict[Status, Fulfilment] = {"absent": absent, "empty": empty, "filled": filled}
    assert {status: fulfilment(requirement, status) for status in expected} == expected


@pytest.mark.parametrize(
    ("tag", "standard"),
    [
        ("60000010", "60xx0010"),
        ("60FE3000", "60xx3000"),
        ("50020005", "50xx0005"),
        ("60010010", "60010010"),
        ("00100020", "00100020"),
        ("54000100", "54000100"),
        ("00600010", "00600010"),
    ],
)
def test_repeating_groups_in_the_form_of_the_standard(tag: str, standard: str) -> None:
    assert standard_tag(tag) == standard
