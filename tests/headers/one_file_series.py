"""One-file series: each file has its own patient, study and series, from five scanners in any order.

Collections of chest X-rays and mammograms are like that. Files of one scanner have the same elements and share values
of the scanner; patients differ in their values, in which of them are empty, and in their character set.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from benchmarks import encoding, profiles
from benchmarks.encoding import CODECS, EXPLICIT, IMPLICIT, JPEG_LOSSLESS, Elements, Sequence, Syntax, Value, elements
from benchmarks.profiles import MODALITIES, VENDORS
from benchmarks.values import random_value, time_of_day

# modality, vendor, transfer syntax, whether sequences have undefined length
SCANNERS: tuple[tuple[str, str, Syntax, bool], ...] = (
    ("DX", "fuji-dx", JPEG_LOSSLESS, False),
    ("CR", "agfa-cr", IMPLICIT, False),
    ("MG", "hologic-mg", EXPLICIT, False),
    ("CT", "ge-ct", EXPLICIT, True),
    ("MR", "siemens-mr", EXPLICIT, True),
)
# character set, names of patients
_NAMES = (
    ("ISO_IR 100", ("Doe^John", "Müßig^Jörg", "Example^Ann^^Dr.", "Lindström-Åkesson^Bo", "Roe^Jane^Q")),
    ("ISO_IR 192", ("Παπαδοπούλου^Ελένη", "王^小东", "Šimková^Žofie")),
)
_DESCRIPTIONS = ("Chest PA", "Thorax a.p. im Liegen", "Routine", "Follow-up", "Screening L/R", "Abdomen")
_OFTEN_EMPTY = ("PatientWeight", "PatientAge", "PatientSex", "PatientBirthDate", "OperatorsName", "AccessionNumber")
_SOMETIMES_ABSENT = ("PatientSize", "StudyID", "PerformedProcedureStepID")
_PIXELS = bytes(64)


def one_file_series(files: int, seed: int = 1) -> Iterator[bytes]:
    """The contents of files, the same in every run."""
    rng = random.Random(seed)
    for number in range(files):
        modality, vendor, syntax, undefined = rng.choice(SCANNERS)
        charset, names = _NAMES[rng.random() < 0.2]
        uid = f"{VENDORS[vendor].uid_root}.{rng.randrange(10 ** rng.choice((6, 10)))}.{number}"
        values = _values(modality, vendor, uid, rng)
        values |= {"SpecificCharacterSet": charset, "PatientName": rng.choice(names)}
        values |= {"PatientID": f"MRN{number}"} | _sequences(uid, rng, undefined=undefined)
        if rng.random() < 0.03:
            del values[rng.choice(_SOMETIMES_ABSENT)]
        yield _file(elements(values) | _private(vendor, rng), str(values["SOPClassUID"]), uid, syntax, CODECS[charset])


def _file(found: Elements, sop_class: str, uid: str, syntax: Syntax, codec: str) -> bytes:
    meta = encoding.file_meta(sop_class, f"{uid}.1.1", syntax, ImplementationVersionName="ARCHIVE_4")
    pixels = encoding.pixel_data(_PIXELS, syntax)
    return encoding.part10(meta, encoding.encode_all(found, syntax, codec) + pixels, syntax)


def _values(modality: str, vendor: str, uid: str, rng: random.Random) -> dict[str, Value]:
    """The values of a file, except those of the patient."""
    values = dict(profiles.general())
    for table in MODALITIES[modality].tables:
        values |= profiles.parsed(table)
    date = f"20{rng.randrange(10, 24)}{rng.randrange(1, 13):02}{rng.randrange(1, 29):02}"
    for keyword in ("InstanceCreationDate", "StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate"):
        values[keyword] = date
    start = rng.uniform(25_000, 70_000)
    for delay, keyword in enumerate(("StudyTime", "SeriesTime", "AcquisitionTime", "ContentTime")):
        values[keyword] = time_of_day(start + 60 * delay)
    values |= _of_scanner(modality, vendor) | _of_patient(rng) | _of_study(uid, rng)
    values |= {keyword: rng.choice(measured) for keyword, measured in _MEASURED.items() if keyword in values}
    if modality in {"DX", "CR"}:
        values |= {"Rows": (rng.choice((2048, 2500, 3001)),), "Columns": (rng.choice((2048, 2500, 3001)),)}
    return values | {keyword: "" for keyword in _OFTEN_EMPTY if rng.random() < 0.15}


def _of_scanner(modality: str, vendor: str) -> dict[str, Value]:
    scanner = VENDORS[vendor]
    return {
        "SOPClassUID": MODALITIES[modality].sop_class,
        "Modality": modality,
        "Manufacturer": scanner.manufacturer,
        "ManufacturerModelName": scanner.model,
        "SoftwareVersions": scanner.versions,
        "ImageType": "ORIGINAL\\PRIMARY",
        "InstitutionName": "Example Hospital",
        "Rows": (512,),
        "Columns": (512,),
    }


def _of_patient(rng: random.Random) -> dict[str, Value]:
    return {
        "PatientBirthDate": f"19{rng.randrange(30, 99)}0{rng.randrange(1, 10)}11",
        "PatientSex": rng.choice("MFO"),
        "PatientAge": f"{rng.randrange(1, 99):03}Y",
        "PatientWeight": f"{rng.uniform(4, 120):.4g}",
        "PatientSize": f"1.{rng.randrange(40, 99)}",
    }


def _of_study(uid: str, rng: random.Random) -> dict[str, Value]:
    return {
        "SOPInstanceUID": f"{uid}.1.1",
        "StudyInstanceUID": uid,
        "SeriesInstanceUID": f"{uid}.1",
        "FrameOfReferenceUID": f"{uid}.9",
        "AccessionNumber": f"A{rng.randrange(10 ** rng.choice((5, 8)))}",
        "StudyID": str(rng.randrange(9999)),
        "StudyDescription": rng.choice(_DESCRIPTIONS),
        "SeriesDescription": rng.choice(_DESCRIPTIONS),
        "RequestedProcedureDescription": rng.choice(_DESCRIPTIONS),
        "ReferringPhysicianName": rng.choice(("Example^Rita^^Dr.", "Ref^A", "")),
        "OperatorsName": rng.choice(("tech03", "tech11")),
        "SeriesNumber": str(rng.randrange(1, 12)),
        "InstanceNumber": str(rng.randrange(1, 120)),
        "PerformedProcedureStepID": f"PPS{rng.randrange(10**9)}",
    }


_MEASURED: dict[str, tuple[str, ...]] = {
    "KVP": ("66", "80", "120", "29"),
    "ExposureTime": ("12", "600", "9"),
    "XRayTubeCurrent": ("400", "280", "95"),
    "Exposure": ("5", "168", "99"),
    "ExposureIndex": ("245", "1200"),
    "EchoTime": ("96", "2.46"),
    "RepetitionTime": ("4240", "6.1", "500"),
    "WindowCenter": ("40", "2047.5", "40\\-600"),
    "WindowWidth": ("400", "4095", "400\\1500"),
    "ViewPosition": ("PA", "LL", "AP", "MLO", "CC"),
    "ProtocolName": ("Thorax", "CHEST ROUTINE 6.1", "t2"),
    "SliceThickness": ("5", "1.25"),
    "ContrastBolusAgent": ("Omnipaque 350", ""),
}


def _sequences(uid: str, rng: random.Random, *, undefined: bool) -> dict[str, Value]:
    def sequence(*items: dict[str, Value]) -> Sequence:
        return Sequence(tuple(elements(item) for item in items), undefined, undefined)

    codes: list[dict[str, Value]] = [
        {"CodeValue": rng.choice(("36643-5", "24627-2")), "CodingSchemeDesignator": "LN", "CodeMeaning": "XR Chest"}
    ]
    requests: list[dict[str, Value]] = [
        {"RequestedProcedureDescription": rng.choice(_DESCRIPTIONS), "ScheduledProcedureStepID": f"SPS{number}"}
        for number in range(rng.randrange(3))
    ]
    if requests and rng.random() < 0.5:
        del requests[0]["RequestedProcedureDescription"]  # then the one at the top level is used
    study: dict[str, Value] = {"ReferencedSOPClassUID": "1.2.840.10008.3.1.2.3.1", "ReferencedSOPInstanceUID": uid}
    return {
        "ReferencedStudySequence": sequence(*[study] * rng.randrange(2)),
        "ProcedureCodeSequence": sequence(*codes),
        "RequestAttributesSequence": sequence(*requests),
    }


def _private(vendor: str, rng: random.Random) -> Elements:
    """The private blocks of a scanner; two elements of each differ between files."""
    found: dict[int, tuple[str, Value]] = {}
    for block in VENDORS[vendor].private:
        vrs, constant = block.vrs.split(), random.Random(block.creator)
        found[block.group << 16 | block.block] = "LO", block.creator
        for position in range(block.size):
            vr = vrs[position % len(vrs)]
            tag = block.group << 16 | block.block << 8 | 1 + position
            found[tag] = vr, random_value(vr, rng if position < 2 else constant)
    return found
