"""The content of the headers of the realistic corpus: elements by modality, vendors, patients and studies.

Modelled on headers of real scanners; every name and number is fictional. The functions that turn these tables into
files are in `corpora.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from benchmarks import encoding
from benchmarks.encoding import Syntax, Value

# -- elements by modality: keyword and value. `tests/benchmarks` counts what comes of them ---------------------------

_GENERAL = """
InstanceCreationDate 20230917
StudyDate 20230917
SeriesDate 20230917
AcquisitionDate 20230917
ContentDate 20230917
StudyTime 081512.437000
SeriesTime 082233.015000
InstitutionalDepartmentName Radiology
ReferringPhysicianName Example^Rita^^Dr.
PerformingPhysicianName
OperatorsName tech03
StationName STATION07
PatientAge 057Y
PatientSize 1.74
PatientWeight 81.5
PatientIdentityRemoved NO
DeviceSerialNumber 45193
TimezoneOffsetFromUTC +0200
StudyID 1
AcquisitionNumber 1
PositionReferenceIndicator
RequestedProcedureDescription As requested
PerformedProcedureStepStartDate 20230917
PerformedProcedureStepStartTime 081512.500000
PerformedProcedureStepID MR20230917081512
"""

_PIXELS = """
SamplesPerPixel 1
PhotometricInterpretation MONOCHROME2
BitsAllocated 16
BitsStored 12
HighBit 11
PixelRepresentation 0
BurnedInAnnotation NO
LossyImageCompression 00
"""

_WINDOW = """
SmallestImagePixelValue 0
WindowCenter 40
WindowWidth 400
RescaleIntercept 0
RescaleSlope 1
RescaleType US
WindowCenterWidthExplanation Algo1
"""

_SLICES = """
ImageOrientationPatient 0.9998\\0.0124\\-0.0161\\-0.0119\\0.9994\\0.0316
PatientPosition HFS
SliceThickness 5
SpacingBetweenSlices 6
PixelSpacing 0.78125\\0.78125
"""

_MR = """
ScanningSequence SE
SequenceVariant SK\\SP\\OSP
ScanOptions PFP\\SFS
MRAcquisitionType 2D
SequenceName *tse2d1_15
AngioFlag N
RepetitionTime 4240
EchoTime 96
NumberOfAverages 2
ImagingFrequency 123.249541
ImagedNucleus 1H
EchoNumbers 1
MagneticFieldStrength 3
NumberOfPhaseEncodingSteps 480
EchoTrainLength 15
PercentSampling 100
PercentPhaseFieldOfView 84.375
PixelBandwidth 220
TransmitCoilName Body
AcquisitionMatrix 0\\320\\264\\0
InPlanePhaseEncodingDirection ROW
FlipAngle 150
VariableFlipAngleFlag N
SAR 0.8315524
dBdt 0
ReceiveCoilName HeadNeck_20
BodyPartExamined HEAD
ProtocolName t2_tse_tra
"""

_CT = """
ScanOptions HELICAL MODE
KVP 120
DataCollectionDiameter 500
ReconstructionDiameter 360
DistanceSourceToDetector 949.147
DistanceSourceToPatient 541
GantryDetectorTilt 0
TableHeight 153.4
RotationDirection CW
ExposureTime 600
XRayTubeCurrent 280
Exposure 168
FilterType BODY FILTER
GeneratorPower 33600
FocalSpots 1.2
ConvolutionKernel STANDARD
RevolutionTime 0.6
SingleCollimationWidth 0.625
TotalCollimationWidth 40
TableSpeed 65.6
TableFeedPerRotation 39.37
SpiralPitchFactor 0.984375
CTDIvol 11.42
EstimatedDoseSaving 31.5
ContrastBolusAgent Omnipaque 350
ContrastBolusRoute Oral & IV
BodyPartExamined CHEST
ProtocolName 6.1 CHEST ROUTINE
"""

_PT = """
Units BQML
CountsSource EMISSION
SeriesType WHOLE BODY\\IMAGE
RandomsCorrectionMethod RAN
AttenuationCorrectionMethod CTAC
DecayCorrection START
ReconstructionMethod VPFXS
ScatterCorrectionMethod Convolution subtraction
DecayFactor 1
DoseCalibrationFactor 1
ScatterFractionFactor 0.349
DeadTimeFactor 1.021
NumberOfSlices 299
FrameReferenceTime 0
ActualFrameDuration 120000
CollimatorType NONE
CorrectedImage DECY\\ATTN\\SCAT\\DTIM\\RAN\\NORM
AxialAcceptance 255
AxialMash 4\\5
TransverseMash 1
CoincidenceWindowWidth 9
EnergyWindowLowerLimit 425
FieldOfViewShape CYLINDRICAL RING
FieldOfViewDimensions 700\\153
BodyPartExamined WHOLEBODY
ProtocolName PET WB
"""

_US = """
TransducerData C5-1
TransducerType SECTOR_PHASED
ProtocolName Abdomen
BodyPartExamined ABDOMEN
HeartRate 70
CineRate 28
FrameTime 35.6
NumberOfFrames 4
MechanicalIndex 1.2
SoftTissueThermalIndex 0.4
BoneThermalIndex 0.6
DepthOfScanField 160
FocusDepth 80
OutputPower
EffectiveDuration 1.2
NumberOfStages 1
NumberOfViewsInStage 1
PlanarConfiguration 0
UltrasoundColorDataPresent 1
"""

_XRAY = """
KVP 66
DistanceSourceToDetector 1800
DistanceSourceToPatient 1751
ExposureTime 12
XRayTubeCurrent 400
Exposure 5
ExposureInuAs 4800
ImageAndFluoroscopyAreaDoseProduct 1.213
Grid FOCUSED
GeneratorPower 80
FocalSpots 1.2
ImagerPixelSpacing 0.139\\0.139
RelativeXRayExposure 310
AcquisitionDeviceProcessingDescription CHEST PA
ViewPosition PA
BodyPartExamined CHEST
PatientOrientation L\\F
PresentationLUTShape IDENTITY
Sensitivity 400
DetectorType SCINTILLATOR
DetectorID DET-2231
DetectorTemperature 31.2
DateOfLastDetectorCalibration 20230801
ExposureIndex 245
TargetExposureIndex 260
DeviationIndex -0.3
ImageLaterality U
PlateID 0044
CassetteOrientation LANDSCAPE
CassetteSize 35CMX43CM
"""

_MAMMOGRAPHY = """
KVP 29
DistanceSourceToDetector 700
DistanceSourceToPatient 660
ExposureTime 1100
XRayTubeCurrent 90
Exposure 99
ExposureInuAs 98700
FilterMaterial RHODIUM
AnodeTargetMaterial TUNGSTEN
FocalSpots 0.3
BodyPartThickness 52
CompressionForce 93.4
EntranceDoseInmGy 4.21
OrganDose 0.0131
HalfValueLayer 0.531
ViewPosition MLO
ImageLaterality L
PatientOrientation A\\FR
ImagerPixelSpacing 0.07\\0.07
PositionerType MAMMOGRAPHIC
PositionerPrimaryAngle 45
PartialView NO
BreastImplantPresent NO
BodyPartExamined BREAST
PresentationIntentType FOR PRESENTATION
PresentationLUTShape IDENTITY
PixelIntensityRelationship LOG
PixelIntensityRelationshipSign 1
QualityControlImage NO
DetectorType DIRECT
DetectorID MAM-7
"""

_NM = """
NumberOfFrames 16
CountsAccumulated 4123889
TriggerSourceOrType EKG
ScanVelocity 0
WholeBodyTechnique 1PASS
NumberOfEnergyWindows 1
NumberOfDetectors 2
NumberOfRotations 1
EnergyWindowVector 1\\1\\1\\1\\1\\1\\1\\1\\1\\1\\1\\1\\1\\1\\1\\1
DetectorVector 1\\1\\1\\1\\1\\1\\1\\1\\2\\2\\2\\2\\2\\2\\2\\2
RotationVector 1\\1\\1\\1\\1\\1\\1\\1\\1\\1\\1\\1\\1\\1\\1\\1
BodyPartExamined HEART
ProtocolName Myocardial SPECT
CollimatorType PARA
ZoomFactor 1.45
ActualFrameDuration 25000
"""

_SR = """
CompletionFlag COMPLETE
VerificationFlag VERIFIED
ValueType CONTAINER
ContinuityOfContent SEPARATE
CompletionFlagDescription
"""


class Modality(NamedTuple):
    """The elements of a modality, its SOP class, and how many instances its series have."""

    sop_class: str
    tables: tuple[str, ...]
    least: int
    most: int
    slices: bool = False


_STORAGE = "1.2.840.10008.5.1.4.1.1."
MODALITIES = {
    "MR": Modality(_STORAGE + "4", (_PIXELS, _WINDOW, _SLICES, _MR), 20, 400, slices=True),
    "CT": Modality(_STORAGE + "2", (_PIXELS, _WINDOW, _SLICES, _CT), 20, 400, slices=True),
    "PT": Modality(_STORAGE + "128", (_PIXELS, _WINDOW, _SLICES, _PT), 60, 300, slices=True),
    "US": Modality(_STORAGE + "3.1", (_PIXELS, _US), 20, 60),
    "CR": Modality(_STORAGE + "1", (_PIXELS, _WINDOW, _XRAY), 1, 3),
    "DX": Modality(_STORAGE + "1.1", (_PIXELS, _WINDOW, _XRAY), 1, 3),
    "MG": Modality(_STORAGE + "1.2", (_PIXELS, _WINDOW, _MAMMOGRAPHY), 2, 4),
    "NM": Modality(_STORAGE + "20", (_PIXELS, _NM), 1, 4),
    "SR": Modality(_STORAGE + "88.33", (_SR,), 1, 2),
}
ENHANCED_MR = _STORAGE + "4.1"
# elements that enhanced objects have in functional groups instead of at the top level
IN_GROUPS = frozenset(
    "ImageOrientationPatient SliceThickness SpacingBetweenSlices PixelSpacing RepetitionTime EchoTime FlipAngle".split()
)
MULTI_FRAME = frozenset({"US", "NM"})


@cache
def parsed(table: str) -> dict[str, Value]:
    """The values of a table by keyword; those of binary VRs as numbers."""
    found: dict[str, Value] = {}
    for line in table.strip().splitlines():
        keyword, _, text = line.partition(" ")
        vr = encoding.vr_of(encoding.tag_of(keyword))
        found[keyword] = _numbers(vr, text) if encoding.is_binary(vr) else text
    return found


def _numbers(vr: str, text: str) -> tuple[float, ...]:
    return tuple((float if vr in {"FL", "FD"} else int)(part) for part in text.split("\\"))


def general() -> dict[str, Value]:
    """The elements that every modality has."""
    return parsed(_GENERAL)


# -- vendors and their private elements -------------------------------------------------------------------------------


class Private(NamedTuple):
    """A private block: `vrs` are used in turn; the first `varying` elements differ from instance to instance."""

    group: int
    creator: str
    vrs: str
    size: int
    varying: int = 0
    block: int = 0x10


class Vendor(NamedTuple):
    """A vendor's equipment for a modality."""

    manufacturer: str
    model: str
    versions: str
    uid_root: str
    private: tuple[Private, ...] = ()


_SIEMENS = "1.3.12.2.1107.5.2.43.67001"
_GE = "1.2.840.113619.2.408.14"
_PHILIPS = "1.3.46.670589.11.71231.5"
_GEMS_CT = (
    Private(0x0009, "GEMS_IDEN_01", "LO SH SS UL", 2),
    Private(0x0019, "GEMS_ACQU_01", "DS SS SL FL", 7, 2),
    Private(0x0021, "GEMS_RELA_01", "SS SL SH DS", 2),
    Private(0x0023, "GEMS_STDY_01", "LO SS FD", 2),
    Private(0x0027, "GEMS_IMAG_01", "SL SS FL FL", 4, 3),
    Private(0x0043, "GEMS_PARM_01", "SS DS LO OB", 7),
    Private(0x0045, "GEMS_HELIOS_01", "SS FL FD", 3),
)
_PHILIPS_MR = (
    Private(0x2001, "Philips Imaging DD 001", "SS FL CS SL", 6, 3),
    Private(0x2005, "Philips MR Imaging DD 001", "FL SS CS UL", 8, 2),
    Private(0x2005, "Philips MR Imaging DD 005", "SL FL UN", 2, 0, 0x14),
)
VENDORS: dict[str, Vendor] = {
    "siemens-mr": Vendor(
        "SIEMENS",
        "Prisma_fit",
        "syngo MR E11",
        _SIEMENS,
        (
            Private(0x0019, "SIEMENS MR HEADER", "CS DS US IS FD", 2, 2),
            Private(0x0051, "SIEMENS MR HEADER", "LO SH CS DS", 4, 1),
        ),
    ),
    "siemens-pt": Vendor(
        "SIEMENS",
        "Biograph128_mCT",
        "VG60A",
        _SIEMENS,
        (
            Private(0x0071, "SIEMENS MED PT", "LO DS", 2, 1),
            Private(0x0029, "SIEMENS CSA HEADER", "CS LO", 2),
        ),
    ),
    "ge-ct": Vendor("GE MEDICAL SYSTEMS", "Discovery CT750 HD", "gmp_vct.40", _GE, _GEMS_CT),
    "ge-mr": Vendor("GE MEDICAL SYSTEMS", "SIGNA Premier", "27\\LX\\MR", _GE, _GEMS_CT[:6]),
    "ge-pt": Vendor(
        "GE MEDICAL SYSTEMS",
        "Discovery MI",
        "pet_mict_plus.44",
        _GE,
        (Private(0x0009, "GEMS_PETD_01", "LO UI DT FL SL", 16, 4),),
    ),
    "philips-mr": Vendor("Philips Medical Systems", "Ingenia", "5.6.1\\5.6.1.0", _PHILIPS, _PHILIPS_MR),
    "philips-us": Vendor(
        "Philips Medical Systems",
        "EPIQ 7G",
        "EPIQ 7G_5.0.2",
        _PHILIPS,
        (
            Private(0x200D, "Philips US Imaging DD 021", "LO IS OB", 3, 1),
            Private(0x200D, "Philips US Imaging DD 033", "LO FD UI", 2, 0, 0x30),
        ),
    ),
    "toshiba-ct": Vendor(
        "TOSHIBA",
        "Aquilion ONE",
        "V8.4ER003",
        "1.2.392.200036.9116.2",
        (Private(0x7005, "TOSHIBA_MEC_CT3", "DS SH US FL", 8, 2),),
    ),
    "hologic-mg": Vendor(
        "HOLOGIC, Inc.",
        "Selenia Dimensions",
        "AWS:1.8.3.63",
        "1.2.840.113681.2231",
        (
            Private(0x0019, "LORAD Selenia", "LO DS IS FL", 8, 2),
            Private(0x7E01, "HOLOGIC, Inc.", "LO SH OB", 2),
        ),
    ),
    "agfa-cr": Vendor("Agfa", "CR 85", "NX 8900", "1.3.51.0.7", (Private(0x0019, "Agfa ADC NX", "ST CS DS SH", 4, 1),)),
    "fuji-dx": Vendor(
        "FUJIFILM Corporation",
        "DR-ID 600",
        "A20",
        "1.2.392.200036.9125",
        (Private(0x0021, "FDMS 1.0", "CS SH US", 4, 1),),
    ),
    "ge-nm": Vendor(
        "GE MEDICAL SYSTEMS", "Tandem_870", "1.006.10", _GE, (Private(0x0009, "GEMS_GENIE_1", "LO SL FD US", 6),)
    ),
    "none-sr": Vendor("Example Reporting", "Reporter", "3.2", "1.2.826.0.1.3680043.9.9999"),
}

# -- patients and studies ---------------------------------------------------------------------------------------------


class Patient(NamedTuple):
    """A fictional patient, with names in characters of `charset`."""

    name: str
    number: str
    sex: str
    birth_date: str
    charset: str
    hospital: str


PATIENTS = (
    Patient("Müßig^Jörg", "MRN-100231", "M", "19660312", "ISO_IR 100", "Klinikum Beispielstädt"),
    Patient("Example^Ann^^Dr.", "100232", "F", "19550704", "", "Example Hospital"),
    Patient("Yamada^Tarou=山田^太郎=やまだ^たろう", "K-77001", "M", "19711123", "\\ISO 2022 IR 87", "Example"),
    Patient("Παπαδοπούλου^Ελένη", "PAT 8841", "F", "19820130", "ISO_IR 192", "Νοσοκομείο"),
    Patient("Doe^Fictional", "", "O", "", "ISO_IR 100", "Hôpital de l'Exemple"),
    Patient("王^小东", "BJ-2201", "M", "19900909", "ISO_IR 192", "示例医院"),
)


@dataclass(frozen=True)
class Series:
    """A kind of series in a study. `traits` are named in `corpora.py`, which applies them."""

    modality: str
    vendor: str
    description: str
    syntax: Syntax
    traits: frozenset[str] = frozenset()
    rows: int = 96
    columns: int = 96


def _series(
    modality: str, vendor: str, description: str, syntax: Syntax, traits: str = "", rows: int = 96, columns: int = 96
) -> Series:
    return Series(modality, vendor, description, syntax, frozenset(traits.split()), rows, columns)


_X, _I = encoding.EXPLICIT, encoding.IMPLICIT

# One line of a study per series, in the order of acquisition; studies repeat until there are enough files.
STUDIES: tuple[tuple[Series, ...], ...] = (
    (
        _series("MR", "siemens-mr", "localizer", _X, "undefined", 64, 64),
        _series("MR", "siemens-mr", "t2_tse_tra", _X, "csa undefined", 128, 96),
        _series("MR", "siemens-mr", "ep2d_diff", _X, "csa diffusion", 64, 64),
        _series("MR", "siemens-mr", "cine_sax", _X, "cine undefined", 96, 96),
        _series("SR", "none-sr", "Report", _X, "undefined"),
    ),
    (
        _series("CT", "ge-ct", "CHEST 1.25MM", _X, "anatomy", 128, 128),
        _series("CT", "ge-ct", "CHEST 5MM", _I, "groups", 128, 128),
        _series("CT", "ge-ct", "COR MPR", encoding.JPEG_2000, "source undefined"),
        _series("DX", "fuji-dx", "Chest PA", encoding.JPEG_LOSSLESS, "anatomy", 160, 192),
    ),
    (
        _series("CT", "toshiba-ct", "AC CT", _I, "undefined anatomy", 128, 128),
        _series("PT", "siemens-pt", "PET WB", _X, "undefined", 64, 64),
        _series("PT", "ge-pt", "PET WB", _I, "undefined anatomy", 96, 96),
    ),
    (
        _series("MG", "hologic-mg", "L MLO", _X, "anatomy", 160, 192),
        _series("MR", "siemens-mr", "t1_fl3d_dyn", _I, "csa dynamic", 128, 96),
        _series("MR", "philips-mr", "T1 mDIXON", _X, "undefined dynamic", 96, 96),
        _series("MG", "hologic-mg", "R CC", encoding.JPEG_LOSSLESS, "anatomy undefined", 160, 192),
    ),
    (
        _series("US", "philips-us", "Abdomen", encoding.JPEG, "undefined", 96, 128),
        _series("CR", "agfa-cr", "Thorax a.p.", encoding.BIG_ENDIAN, "groups", 160, 192),
        _series("CR", "agfa-cr", "Thorax lat.", _I, "groups", 160, 192),
        _series("NM", "ge-nm", "Myocardial SPECT", _I, "undefined", 32, 32),
        _series("SR", "none-sr", "Measurements", _I, ""),
    ),
    (
        _series("MR", "ge-mr", "Ax T2 FLAIR", _X, "undefined anatomy", 128, 128),
        _series("MR", "ge-mr", "Ax DWI", encoding.DEFLATED, "", 64, 64),
        _series("MR", "philips-mr", "T2W_TSE", encoding.RLE, "undefined"),
        _series("MR", "philips-mr", "ENH 3D", _X, "enhanced undefined", 32, 32),
    ),
    (
        _series("MR", "siemens-mr", "t1_mprage", _I, "", 96, 96),
        _series("MR", "siemens-mr", "t2_flair", encoding.BIG_ENDIAN, "short", 64, 64),
        _series("CT", "toshiba-ct", "Abdomen", encoding.JPEG_LOSSLESS, "anatomy"),
        _series("MR", "siemens-mr", "fl2d_vibe", _X, "csa", 96, 96),
    ),
)
