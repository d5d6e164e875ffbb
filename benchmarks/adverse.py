"""Valid files that have as little in common as possible."""

from __future__ import annotations

import random
from functools import cache

from benchmarks import encoding, profiles
from benchmarks.encoding import CODECS, Elements, Sequence, Syntax, Value, elements, encode, joined, pixel_data
from benchmarks.profiles import MODALITIES
from benchmarks.values import random_value

_SYNTAXES = (
    *(encoding.EXPLICIT,) * 9,
    *(encoding.IMPLICIT,) * 5,
    *(encoding.DEFLATED,) * 2,
    encoding.BIG_ENDIAN,
    encoding.JPEG,
    encoding.JPEG_2000,
    encoding.RLE,
)
_CHARSETS = (
    "",
    "",
    "ISO_IR 100",
    "ISO_IR 100",
    "ISO_IR 192",
    "\\ISO 2022 IR 87",
    "GB18030",
    "ISO_IR 101",
    "ISO_IR 144",
)
_NAMES = {
    "ISO_IR 100": "Müßig^Jörg",
    "ISO_IR 192": "王^小东=Ελένη",
    "\\ISO 2022 IR 87": "Yamada^Tarou=山田^太郎=やまだ^たろう",
    "GB18030": "Wang^XiaoDong=王^小东",
    "ISO_IR 101": "Łukasiewicz^Żółć",
    "ISO_IR 144": "Люкceмбypг",
}
_SEQUENCES = """
ReferencedStudySequence ReferencedSeriesSequence ReferencedImageSequence SourceImageSequence AnatomicRegionSequence
ProcedureCodeSequence RequestAttributesSequence ConceptNameCodeSequence ContentSequence ViewCodeSequence
RadiopharmaceuticalInformationSequence SharedFunctionalGroupsSequence PatientSpeciesCodeSequence
IssuerOfAccessionNumberSequence IssuerOfPatientIDQualifiersSequence ReasonForRequestedProcedureCodeSequence
DerivationCodeSequence PerformedProtocolCodeSequence RequestedProcedureCodeSequence SpecimenDescriptionSequence
OriginalAttributesSequence EnergyWindowInformationSequence DetectorInformationSequence AcquisitionContextSequence
""".split()
_IN_ITEMS = (
    "CodeValue CodingSchemeDesignator CodeMeaning ReferencedSOPInstanceUID UniversalEntityID SliceThickness".split()
)
_PRIVATE_VRS = "LO SH CS DS IS FD FL US SS UL SL UI OB UN ST LT PN DA TM AT".split()
_SOP_CLASSES = tuple(sorted({modality.sop_class for modality in MODALITIES.values()}))
_MORE = """
ImageType AccessionNumber Modality Manufacturer InstitutionName StudyDescription SeriesDescription PatientID PatientSex
PatientBirthDate SeriesNumber InstanceNumber ImagePositionPatient SliceLocation FrameOfReferenceUID ContentTime Rows
AcquisitionTime AcquisitionDateTime ManufacturerModelName TriggerTime Laterality ContentLabel DocumentTitle AdmissionID
PatientAddress IssuerOfPatientID RetrieveURL DeviceUID DeidentificationMethod EthnicGroup PatientTelephoneNumbers
""".split()


@cache
def _pool() -> tuple[str, ...]:
    """The keywords of the realistic corpus and more, except those with fixed values in this module."""
    fixed = {"SpecificCharacterSet", "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"}
    known = set(profiles.general()) | set(_MORE)
    for modality in MODALITIES.values():
        known |= {keyword for table in modality.tables for keyword in profiles.parsed(table)}
    return tuple(sorted(known - fixed, key=encoding.tag_of))


class AdverseFile:
    """A file with all of its properties drawn at random."""

    def __init__(self, rng: random.Random, noise: bytes) -> None:
        self.rng, self.noise = rng, noise
        self.syntax: Syntax = rng.choice(_SYNTAXES)
        self.charset = rng.choice(_CHARSETS)
        self.codec = CODECS[self.charset]

    def content(self, study: str, series: str, instance: str) -> bytes:
        """The file."""
        rng, sop_class = self.rng, self.rng.choice(_SOP_CLASSES)
        found = {**self._public(), **self._sequences(), **self._privates()}
        uids = {"SOPClassUID": sop_class, "SOPInstanceUID": instance, "StudyInstanceUID": study}
        found |= elements(uids | {"SeriesInstanceUID": series})
        if self.charset or rng.random() < 0.3:
            found |= elements({"SpecificCharacterSet": self.charset})
        name = rng.choice((_NAMES.get(self.charset, "Doe^J"), "Doe^Jane====", "", " Doe ^ Jane "))
        found |= elements({"PatientName": name})
        encoded = {tag: self._encoded(tag, vr, value) for tag, (vr, value) in found.items()}
        content = joined(encoded, self.syntax, group_lengths=rng.random() < 0.1)
        meta = encoding.file_meta(sop_class, instance, self.syntax, length=rng.random() > 0.05, **self._more_meta())
        preamble = rng.choice((bytes(128), bytes(128), b"II*\0" + rng.randbytes(124)))
        return encoding.part10(meta, content + self._end(), self.syntax, preamble)

    def _more_meta(self) -> dict[str, str]:
        more = {"ImplementationClassUID": f"1.2.{self.rng.randrange(10**6)}", "SourceApplicationEntityTitle": "PACS"}
        return {keyword: value for keyword, value in more.items() if self.rng.random() < 0.5}

    def _encoded(self, tag: int, vr: str, value: Value) -> bytes:
        lost = self.rng.random() < 0.03 and vr != "UI"
        if lost and not self.syntax.implicit and not self.syntax.big:
            # a standard element that an intermediate system has encoded as UN (PS3.5 6.2.2)
            implicit = encode(tag, vr, value, encoding.IMPLICIT, self.codec)
            length = int.from_bytes(implicit[4:8], "little")
            return encoding.head(tag, "UN", length, self.syntax) + implicit[8:]
        return encode(tag, vr, value, self.syntax, self.codec)

    def _public(self) -> dict[int, tuple[str, Value]]:
        keywords = self.rng.sample(_pool(), self.rng.randrange(40, 110))
        return {(tag := encoding.tag_of(k)): (vr := encoding.vr_of(tag), self._value(vr)) for k in keywords}

    def _value(self, vr: str) -> Value:
        """A value that may be empty, blank, multiple, or have unusual padding; rarely one that is invalid."""
        draw = self.rng.random()
        if draw < 0.10:
            return b""
        value = random_value(vr, self.rng)
        if not isinstance(value, str):
            return value * 2 if draw < 0.13 and isinstance(value, tuple) else value
        if draw < 0.13:
            return self.rng.choice((" ", "  ", "\0\0", " " * 8))
        if draw < 0.16:
            return f"{value}\\{random_value(vr, self.rng)!s}\\"
        if draw < 0.20:
            return self.rng.choice((f"{value}\0", f" {value}  ", f"{value}\0\0\0", f"  {value}"))
        return "1A" if draw < 0.203 else value

    def _sequences(self) -> dict[int, tuple[str, Value]]:
        keywords = self.rng.sample(_SEQUENCES, self.rng.randrange(10))
        return {encoding.tag_of(keyword): ("SQ", self._sequence(3)) for keyword in keywords}

    def _sequence(self, depth: int) -> Sequence:
        items = tuple(self._item(depth) for _ in range(self.rng.choice((0, 1, 1, 1, 2, 5))))
        return Sequence(items, self.rng.random() < 0.5, self.rng.random() < 0.5)

    def _item(self, depth: int) -> Elements:
        keywords = self.rng.sample(_IN_ITEMS, self.rng.randrange(len(_IN_ITEMS)))
        found = {(tag := encoding.tag_of(k)): (vr := encoding.vr_of(tag), self._value(vr)) for k in keywords}
        if depth and self.rng.random() < 0.4:
            found[encoding.tag_of("ConceptNameCodeSequence")] = "SQ", self._sequence(depth - 1)
        return found

    def _privates(self) -> dict[int, tuple[str, Value]]:
        found: dict[int, tuple[str, Value]] = {}
        for _ in range(self.rng.randrange(6)):
            group = self.rng.choice((0x0009, 0x0019, 0x0029, 0x0043, 0x0051, 0x2001, 0x2005, 0x7005))
            block = self.rng.randrange(0x10, 0x100)
            if self.rng.random() < 0.9:  # some blocks have no creator
                found[group << 16 | block] = "LO", self.rng.choice(("ACME 1.1", "SIEMENS MR HEADER", "GEMS_ACQU_01"))
            for low in self.rng.sample(range(0x100), self.rng.randrange(1, 16)):
                found[group << 16 | block << 8 | low] = self._private_value()
        return found

    def _private_value(self) -> tuple[str, Value]:
        if self.rng.random() < 0.02:
            return "OB", self.noise[: self.rng.randrange(30_000)]
        if self.rng.random() < 0.05:
            return "SQ", self._sequence(2)
        vr = self.rng.choice(_PRIVATE_VRS)
        return vr, self._value(vr)

    def _end(self) -> bytes:
        """Pixel data of any length; a few files have none, and others have padding after it."""
        draw = self.rng.random()
        if draw < 0.04:
            return b""
        content = self.noise[: self.rng.randrange(2, 12_000)]
        padding = encode(0xFFFCFFFC, "OB", bytes(64), self.syntax, "ascii") if draw > 0.9 else b""
        return (
            pixel_data(content, self.syntax, fragments=self.rng.choice((1, 3)), vr=self.rng.choice(("OB", "OW")))
            + padding
        )
