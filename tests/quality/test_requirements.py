"""The attributes that apply to an instance. Types are those of PS3.3."""

import pytest

from dicom_etl.quality.requirements import (
    TYPES,
    AttributeType,
    find_attributes,
    find_iod,
    rank_type,
    to_standard_tag,
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

NO_TAGS: frozenset[str] = frozenset()


def types(sop_class: str, *present: str) -> dict[str, AttributeType]:
    attributes = find_attributes(sop_class, frozenset(present))
    assert attributes is not None
    return dict(attributes)


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
    assert find_iod(sop_class) == iod


@pytest.mark.parametrize("sop_class", ["", "1.2.3", RETIRED_ULTRASOUND, "1.2.840.10008.1.2.1"])
def test_unknown_and_retired_sop_classes_are_unclassified(sop_class: str) -> None:
    assert find_iod(sop_class) is None
    assert find_attributes(sop_class, NO_TAGS) is None


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
def test_mandatory_modules_always_apply(sop_class: str, tag: str, keyword: str, type_: AttributeType) -> None:
    assert types(sop_class)[tag] == type_, keyword


def test_a_tag_in_several_modules_has_the_strictest_type() -> None:
    # ImageType: Type 3 in General Image, 1 in CT Image and MR Image, 2 in US Image, 3 in CR.
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


def test_an_optional_module_applies_if_one_of_its_attributes_is_present() -> None:
    patient_age, patient_weight = "00101010", "00101030"  # Patient Study, usage U
    assert patient_weight not in types(CT)
    assert types(CT, patient_age)[patient_weight] == "3"


def test_a_conditional_module_applies_if_an_attribute_is_present() -> None:
    contrast_agent, contrast_route = "00180010", "00181040"  # Contrast/Bolus, usage C
    assert contrast_agent not in types(CT)
    assert types(CT, contrast_route)[contrast_agent] == "2"


def test_an_attribute_of_a_mandatory_module_is_no_evidence_for_others() -> None:
    # ICCProfile: Type 3 in Image Pixel (mandatory), 1 in ICC Profile (usage U, and nothing else of its own).
    icc_profile = "00282000"
    assert types(SECONDARY_CAPTURE, icc_profile)[icc_profile] == "3"


def test_a_frame_of_reference_is_required_where_mandatory_or_in_use() -> None:
    frame_of_reference, position_reference_indicator = "00200052", "00201040"
    assert types(CT)[frame_of_reference] == "1"
    assert frame_of_reference not in types(SECONDARY_CAPTURE)
    assert types(SECONDARY_CAPTURE, frame_of_reference)[position_reference_indicator] == "2"


def test_a_shared_attribute_is_evidence_for_the_module_in_use() -> None:
    # ShutterShape is in Display Shutter and in Bitmap Display Shutter.
    shutter_shape, left_edge, shutter_overlay_group = "00181600", "00181602", "00181623"
    rectangular = types(GRAYSCALE_PRESENTATION_STATE, shutter_shape, left_edge)
    assert rectangular[shutter_shape] == "1"
    assert shutter_overlay_group not in rectangular
    bitmap = types(GRAYSCALE_PRESENTATION_STATE, shutter_shape, shutter_overlay_group)
    assert bitmap[shutter_shape] == "1"
    assert left_edge not in bitmap


def test_only_what_all_undecided_modules_require_is_unconditional() -> None:
    # A parametric map has one of three image pixel modules: of integers, of floats, of doubles.
    rows, columns, pixel_representation, high_bit = "00280010", "00280011", "00280103", "00280102"
    of_any_kind = types(PARAMETRIC_MAP, rows)
    assert of_any_kind[columns] == "1"
    assert of_any_kind[pixel_representation] == "1C"
    of_integers = types(PARAMETRIC_MAP, rows, pixel_representation)
    assert of_integers[columns] == "1"
    assert of_integers[pixel_representation] == "1"
    assert of_integers[high_bit] == "1"


def test_an_undecided_module_does_not_weaken_a_mandatory_attribute() -> None:
    # RepresentativeFrameNumber is in two modules; one of them has InstanceNumber as Type 1.
    representative_frame, instance_number = "00286010", "00200013"
    attributes = types(MULTI_FRAME_GRAYSCALE_BYTE_SECONDARY_CAPTURE, representative_frame)
    assert attributes[instance_number] == "2"


def test_overlay_attributes_apply_for_each_overlay_that_is_present() -> None:
    attributes = types(CT, "60000010", "60020010")
    assert attributes["60000011"] == "1"  # OverlayColumns
    assert attributes["60023000"] == "1"  # OverlayData
    assert "60040011" not in attributes
    assert not any("x" in tag for tag in attributes)


@pytest.mark.parametrize("tag", ["60010010", "50000005", "00090010"])
def test_without_an_overlay_no_overlay_attribute_applies(tag: str) -> None:
    assert not any(name.startswith("60") for name in types(CT, tag))


def test_an_overlay_attribute_of_a_mandatory_module_needs_an_overlay() -> None:
    assert "60000045" not in types(US)  # OverlaySubtype, Type 1C in US Image
    assert types(US, "60000045")["60000045"] == "1C"


def test_private_tags_and_tags_of_other_iods_are_ignored() -> None:
    assert types(CT, "00091001", "300A0002", "7FE00010") == types(CT)


def test_pixel_data_is_omitted() -> None:
    assert "7FE00010" not in types(CT)
    assert max(types(CT)) < "7FE00000"


def test_the_root_of_a_document_is_a_container() -> None:
    attributes = types(COMPREHENSIVE_SR)
    assert attributes["0040A040"] == "1"  # ValueType
    assert attributes["0040A050"] == "1"  # ContinuityOfContent
    assert attributes["0040A168"] == "1C"  # ConceptCodeSequence, for CODE
    assert attributes["0040A300"] == "2C"  # MeasuredValueSequence, for NUM


def test_equal_modules_give_the_same_object_in_the_order_of_tags() -> None:
    present = frozenset({"00101010"})
    attributes = find_attributes(CT, present)
    assert attributes is not None
    assert find_attributes(CT, frozenset({"00101020"})) is attributes  # another attribute of the same module
    assert list(attributes) == sorted(attributes)


def test_the_attributes_cannot_be_changed() -> None:
    attributes = find_attributes(CT, NO_TAGS)
    with pytest.raises(TypeError):
        attributes["00100010"] = "3"  # type: ignore[index]


@pytest.mark.parametrize(
    ("attribute_type", "if_absent", "if_empty"),
    [
        ("1", "violation", "violation"),
        ("1C", "undecided", "violation"),
        ("2", "violation", "allowed"),
        ("2C", "undecided", "allowed"),
        ("3", "allowed", "allowed"),
    ],
)
def test_the_rule_of_each_type(attribute_type: AttributeType, if_absent: str, if_empty: str) -> None:
    assert TYPES[attribute_type][:2] == (if_absent, if_empty)


def test_types_are_ordered_by_strictness() -> None:
    assert [rank_type(name) for name in ("1", "1C", "2", "2C", "3")] == [0, 1, 2, 3, 4]


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
    assert to_standard_tag(tag) == standard
