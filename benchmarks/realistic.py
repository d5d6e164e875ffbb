"""Realistic series: their files differ in about ten elements, and in private elements of vendors.

The tables of elements are in `profiles.py`; here they become bytes. Traits of a series:

    undefined   sequences and items of undefined length
    groups      group lengths (retired, still written by old equipment)
    anatomy     AnatomicRegionSequence
    csa         large private headers that differ between files
    cine, diffusion, dynamic, source: another element that varies
    enhanced    multi-frame with functional groups
    short       few files
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from itertools import count, cycle
from typing import NamedTuple

from pydicom.datadict import private_dictionary_VR

from benchmarks import csa, encoding, profiles
from benchmarks.encoding import CODECS, Sequence, Value, elements, encode, joined, pixel_data
from benchmarks.profiles import MODALITIES, MULTI_FRAME, PATIENTS, STUDIES, VENDORS, Patient, Private, Series
from benchmarks.values import random_value, time_of_day


class Study(NamedTuple):
    subject: str
    patient: Patient
    uid: str
    date: str
    together: bool  # all series in one folder, as an archive exports them


def all_series(rng: random.Random, noise: bytes, scale: float) -> Iterator[SeriesFiles]:
    """An endless sequence of series; every third study is a second one of the previous subject."""
    for number, kinds in zip(count(), cycle(STUDIES)):
        subject = number - number // 3
        uid = f"1.2.840.99999.2.{rng.randrange(10**11)}.{number}"
        date = f"2023{1 + number % 12:02}{rng.randint(1, 28):02}"
        study = Study(f"sub-{subject + 1:02}", PATIENTS[subject % len(PATIENTS)], uid, date, number % 4 == 3)
        for position, kind in enumerate(kinds, 1):
            yield SeriesFiles(kind, study, position, rng, noise, scale)


class SeriesFiles:
    """A series: elements that its files share are encoded once, those that differ once for each file."""

    def __init__(self, kind: Series, study: Study, number: int, rng: random.Random, noise: bytes, scale: float) -> None:
        self.kind, self.study, self.number, self.rng, self.noise = kind, study, number, rng, noise
        self.vendor, self.modality = VENDORS[kind.vendor], MODALITIES[kind.modality]
        self.codec = CODECS[study.patient.charset]
        self.sop_class = profiles.ENHANCED_MR if "enhanced" in kind.traits else self.modality.sop_class
        self.uid = f"{self.vendor.uid_root}.{rng.randrange(10**13, 10**14)}.{number}"
        self.length = self._length(scale)
        self.protocol = csa.protocol(rng) if "csa" in kind.traits else b""
        self.start = rng.uniform(30_000, 60_000)  # seconds of the day
        self.encoded = {tag: self._encode(tag, *element) for tag, element in self._constant().items()}

    def _length(self, scale: float) -> int:
        least, most = self.modality.least, self.modality.most
        if "enhanced" in self.kind.traits:
            least, most = 6, 12
        if "short" in self.kind.traits:
            most = 40
        length = self.rng.triangular(least, most, least + (most - least) / 5)
        return max(1, round(length * min(scale, 1.0)))

    def files(self, length: int) -> Iterator[tuple[str, bytes]]:
        """(path below `primary/`, content) of the first `length` instances."""
        for index in range(length):
            uid = self._instance_uid(index)
            sample = "sam-1" if self.study.together else f"sam-{self.number}"
            name = f"{uid}.dcm" if self.study.together else f"IM_{index + 1:04}.dcm"
            yield f"{self.study.subject}/{sample}-{self.study.date}/{name}", self._content(index, uid)

    def _instance_uid(self, index: int) -> str:
        if self.kind.vendor.startswith("siemens"):  # a counter of fixed width; others append the number
            return f"{self.uid}.{20230917000000 + index * 37}"
        return f"{self.uid}.{index + 1}"

    def _content(self, index: int, uid: str) -> bytes:
        merged = dict(self.encoded)
        for tag, element in self.varying(index, uid).items():
            merged[tag] = self._encode(tag, *element)
        if self.modality.slices and self.rng.random() < 0.01:  # an element may be missing
            merged.pop(encoding.tag_of("SliceLocation"), None)
        content = joined(merged, self.kind.syntax, group_lengths="groups" in self.kind.traits)
        meta = encoding.file_meta(
            self.sop_class, uid, self.kind.syntax, ImplementationClassUID=f"{self.vendor.uid_root}.1"
        )
        return encoding.part10(meta, content + self._pixels(), self.kind.syntax)

    def _encode(self, tag: int, vr: str, value: Value) -> bytes:
        return encode(tag, vr, value, self.kind.syntax, self.codec)

    def _pixels(self) -> bytes:
        """Random pixels, which no reader of headers uses."""
        if self.kind.modality == "SR":
            return b""
        size = self.kind.rows * self.kind.columns * 2
        if "enhanced" in self.kind.traits:
            size *= _FRAMES
        if self.kind.syntax.encapsulated:
            size = size // 4 + self.rng.randrange(2_000)
        start = self.rng.randrange(len(self.noise) - min(size, 1 << 16))
        return pixel_data(self.noise[start : start + size].ljust(size, b"\0"), self.kind.syntax, fragments=2)

    # -- elements that the files of a series share

    def _constant(self) -> dict[int, tuple[str, Value]]:
        values = profiles.general()
        for table in self.modality.tables:
            values = values | profiles.parsed(table)
        if "enhanced" in self.kind.traits:
            values = {keyword: value for keyword, value in values.items() if keyword not in profiles.IN_GROUPS}
        values |= self._identity() | self._matrix() | self._sequences()
        found = elements(values)
        for private in self.vendor.private:
            found |= _private(private, self.rng)
        return found

    def _identity(self) -> dict[str, Value]:
        patient, date = self.study.patient, self.study.date
        dates = ("InstanceCreationDate", "StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate")
        image_type = "DERIVED\\SECONDARY\\MPR" if "source" in self.kind.traits else "ORIGINAL\\PRIMARY\\M\\NORM"
        found: dict[str, Value] = dict.fromkeys(dates, date)
        if patient.charset:
            found["SpecificCharacterSet"] = patient.charset
        if self.modality.slices:
            found["FrameOfReferenceUID"] = f"{self.study.uid}.9.{self.number}"
        return found | {
            "ImageType": image_type,
            "SOPClassUID": self.sop_class,
            "AccessionNumber": f"A{date}{len(patient.name):02}",
            "Modality": self.kind.modality,
            "Manufacturer": self.vendor.manufacturer,
            "ManufacturerModelName": self.vendor.model,
            "SoftwareVersions": self.vendor.versions,
            "InstitutionName": patient.hospital,
            "StudyDescription": self.kind.description.split()[0],
            "SeriesDescription": self.kind.description,
            "SeriesTime": time_of_day(self.start),
            "PatientName": patient.name,
            "PatientID": patient.number,
            "PatientSex": patient.sex,
            "PatientBirthDate": patient.birth_date,
            "StudyInstanceUID": self.study.uid,
            "SeriesInstanceUID": self.uid,
            "SeriesNumber": str(self.number),
        }

    def _matrix(self) -> dict[str, Value]:
        if self.kind.modality == "SR":
            return {}
        return {"Rows": (self.kind.rows,), "Columns": (self.kind.columns,)}

    def _sequences(self) -> dict[str, Value]:
        """Sequences of defined length, or of undefined length if the series has that trait."""
        items: dict[str, list[dict[str, Value]]] = {
            "ReferencedStudySequence": [_reference("1.2.840.10008.3.1.2.3.1", self.study.uid)],
            "ReferencedPerformedProcedureStepSequence": [
                _reference("1.2.840.10008.3.1.2.3.3", f"{self.study.uid}.1.3")
            ],
            "ProcedureCodeSequence": [_code("24627-2", "LN", "CT Chest")],
            "RequestAttributesSequence": [_REQUEST | {"RequestedProcedureID": f"RP{self.study.date}"}],
        }
        if self.modality.slices and "enhanced" not in self.kind.traits:
            items["ReferencedImageSequence"] = [_reference(self.sop_class, f"{self.uid}.0.{n}") for n in range(3)]
        if "anatomy" in self.kind.traits:
            items["AnatomicRegionSequence"] = [_code("51185008", "SCT", "Chest")]
        if self.kind.modality in {"PT", "NM"}:
            items["RadiopharmaceuticalInformationSequence"] = [self._tracer()]
        if self.kind.modality == "SR":
            items["ConceptNameCodeSequence"] = [_code("126000", "DCM", "Imaging Measurement Report")]
            items["ContentSequence"] = [self._finding(depth=4) for _ in range(6)]
        if "enhanced" in self.kind.traits:
            items["SharedFunctionalGroupsSequence"] = [self._shared_groups()]
        return {keyword: self._sequence(*contents) for keyword, contents in items.items()}

    def _sequence(self, *items: Mapping[str, Value]) -> Sequence:
        undefined = "undefined" in self.kind.traits
        return Sequence(tuple(elements(item) for item in items), undefined, undefined)

    def _tracer(self) -> dict[str, Value]:
        return {
            "Radiopharmaceutical": "Fluorodeoxyglucose",
            "RadiopharmaceuticalVolume": "0",
            "RadiopharmaceuticalStartTime": "091200.00",
            "RadionuclideTotalDose": "312000000",
            "RadionuclideHalfLife": "6586.2",
            "RadionuclideCodeSequence": self._sequence(_code("C-111A1", "SRT", "^18^Fluorine")),
            "RadiopharmaceuticalCodeSequence": self._sequence(_code("C-B1031", "SRT", "Fluorodeoxyglucose F^18^")),
        }

    def _finding(self, depth: int) -> dict[str, Value]:
        found: dict[str, Value] = {
            "RelationshipType": "CONTAINS",
            "ValueType": "TEXT",
            "ConceptNameCodeSequence": self._sequence(_code("121071", "DCM", "Finding")),
            "TextValue": "Nothing of note. " * 12,
        }
        return found | ({"ContentSequence": self._sequence(self._finding(depth - 1))} if depth else {})

    def _shared_groups(self) -> dict[str, Value]:
        anatomy: dict[str, Value] = {"FrameLaterality": "U", "AnatomicRegionSequence": self._sequence(_HEAD)}
        spacing = {"SliceThickness": "2", "SpacingBetweenSlices": "2.2", "PixelSpacing": "0.9\\0.9"}
        timing = {"RepetitionTime": "8.1", "FlipAngle": "8"}
        return {
            "FrameAnatomySequence": self._sequence(anatomy),
            "PixelMeasuresSequence": self._sequence(spacing),
            "MRTimingAndRelatedParametersSequence": self._sequence(timing),
            "MREchoSequence": self._sequence({"EffectiveEchoTime": (3.72,)}),
            "PlaneOrientationSequence": self._sequence({"ImageOrientationPatient": "1\\0\\0\\0\\1\\0"}),
        }

    # -- elements that differ between files

    def varying(self, index: int, uid: str) -> dict[int, tuple[str, Value]]:
        seconds = self.start + index * 1.75
        values: dict[str, Value] = {
            "SOPInstanceUID": uid,
            "InstanceNumber": str(index + 1),
            "InstanceCreationTime": time_of_day(seconds + 40),
            "ContentTime": time_of_day(seconds + 20),
            "AcquisitionTime": time_of_day(seconds),
        }
        if "enhanced" in self.kind.traits:
            values |= {"NumberOfFrames": str(_FRAMES), "PerFrameFunctionalGroupsSequence": self._frames(index)}
        elif self.modality.slices:
            values |= _slice(index) | _BY_MODALITY[self.kind.modality](index, self.rng)
        elif self.kind.modality in MULTI_FRAME:
            values["HeartRate"] = str(60 + self.rng.randrange(30))
        for trait, function in _BY_TRAIT.items():
            if trait in self.kind.traits:
                values |= function(index, self)
        found = elements(values)
        for private in self.vendor.private:
            found |= _private(private, self.rng, varying=True)
        return found | (self._csa(index) if self.protocol else {})

    def _frames(self, index: int) -> Sequence:
        return self._sequence(
            *(
                {
                    "FrameContentSequence": self._sequence(
                        {"StackID": "1", "InStackPositionNumber": (n + 1,), "TemporalPositionIndex": (index + 1,)}
                    ),
                    "PlanePositionSequence": self._sequence(
                        {"ImagePositionPatient": _slice(n)["ImagePositionPatient"]}
                    ),
                }
                for n in range(_FRAMES)
            )
        )

    def _csa(self, index: int) -> dict[int, tuple[str, Value]]:
        """The two large private headers of this vendor, which differ between slices."""
        image = csa.image_header(index, self.rng)
        series = self.protocol[:2048] + b"%-16d" % (index * 7919) + self.protocol[2064:]
        return {
            0x00290010: ("LO", "SIEMENS CSA HEADER"),
            0x00290011: ("LO", "SIEMENS MEDCOM HEADER2"),
            0x00291008: ("CS", "IMAGE NUM 4"),
            0x00291009: ("LO", "20230917"),
            0x00291010: ("OB", image),
            0x00291018: ("CS", "MR"),
            0x00291019: ("LO", "20230917"),
            0x00291020: ("OB", series),
            0x00291160: ("LO", "com"),
        }


_FRAMES = 16
_REQUEST: dict[str, Value] = {
    "RequestedProcedureDescription": "Staging",
    "ReasonForTheRequestedProcedure": "Follow-up",
    "ScheduledProcedureStepDescription": "Staging",
    "ScheduledProcedureStepID": "SPS1",
}


def _reference(sop_class: str, uid: str) -> dict[str, Value]:
    return {"ReferencedSOPClassUID": sop_class, "ReferencedSOPInstanceUID": uid}


def _code(value: str, scheme: str, meaning: str) -> dict[str, Value]:
    return {"CodeValue": value, "CodingSchemeDesignator": scheme, "CodeMeaning": meaning}


def _slice(index: int) -> dict[str, Value]:
    place = -112.5 + index * 1.25
    return {
        "ImagePositionPatient": f"{-122.7 + place * 0.016:.7g}\\{-140.25 - place * 0.03:.7g}\\{place:.7g}",
        "SliceLocation": f"{place:.7g}",
    }


def _mr(index: int, rng: random.Random) -> dict[str, Value]:
    largest = rng.randrange(800, 2000)
    return {
        "LargestImagePixelValue": (largest,),
        "WindowCenter": str(largest // 2),
        "WindowWidth": str(largest + index % 3),
    }


def _ct(_: int, rng: random.Random) -> dict[str, Value]:
    current = rng.randrange(90, 450)  # differs between slices
    return {"XRayTubeCurrent": str(current), "Exposure": str(current // 2), "TableHeight": "153.4"}


def _pt(index: int, rng: random.Random) -> dict[str, Value]:
    return {
        "RescaleSlope": f"{rng.uniform(0.05, 2.9):.8g}",
        "LargestImagePixelValue": (rng.randrange(20_000, 32_767),),
        "FrameReferenceTime": f"{index // 47 * 120_000}",
        "DecayFactor": f"{1 + index // 47 * 0.0126:.6f}",
        "ImageIndex": (index + 1,),
    }


_HEAD = _code("69536005", "SCT", "Head")
_BY_MODALITY: dict[str, Callable[[int, random.Random], dict[str, Value]]] = {"MR": _mr, "CT": _ct, "PT": _pt}
_BY_TRAIT: dict[str, Callable[[int, SeriesFiles], dict[str, Value]]] = {
    "cine": lambda index, _: {"TriggerTime": f"{index % 25 * 33.7:.4g}", "NominalInterval": "842"},
    "diffusion": lambda index, _: {
        "DiffusionBValue": (float(index % 3 * 500),),
        "SequenceName": f"*ep_b{index % 3 * 500}",
    },
    "dynamic": lambda index, _: {
        "TemporalPositionIdentifier": str(index // 20 + 1),
        "EchoTime": f"{1.9 + index % 2 * 1.15:.3g}",
    },
    "source": lambda index, one: {
        "SourceImageSequence": one._sequence(*(_reference(one.sop_class, f"{one.uid}.1.{index + n}") for n in range(2)))
    },
}


def _private(block: Private, rng: random.Random, *, varying: bool = False) -> dict[int, tuple[str, Value]]:
    """The elements of a private block, with its creator; or only those that differ between files."""
    first, vrs = block.group << 16 | block.block << 8, block.vrs.split()
    found: dict[int, tuple[str, Value]] = {}
    for position in range(block.varying if varying else block.size):
        tag = first | 2 + 3 * position
        vr = _known_vr(tag, block.creator) or vrs[position % len(vrs)]
        found[tag] = vr, random_value(vr, rng)
    return found if varying else {block.group << 16 | block.block: ("LO", block.creator)} | found


@cache
def _known_vr(tag: int, creator: str) -> str | None:
    """The VR of a vendor's element, which readers of implicit VR use."""
    try:
        vr = private_dictionary_VR(tag, creator)
    except KeyError:
        return None
    return vr if len(vr) == 2 and vr != "SQ" else "UN"
