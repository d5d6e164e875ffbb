"""build: patient matching, the resources of units, and which units are rebuilt."""

import json
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import Mock

import pytest

from dicom_etl.engine import Engine
from dicom_etl.fhir.context import Context
from dicom_etl.fhir.patient import make_patient
from dicom_etl.fhir.rows import FindingCollector, HeaderRows
from dicom_etl.fhir.validation import find_errors
from dicom_etl.identity.matching import PatientMatch
from dicom_etl.lake.commits import DamagedShardError, read_commits
from dicom_etl.lake.locks import LockHeldError
from dicom_etl.lake.schemas import DATASET_FINDINGS, IDENTITIES, RESOURCE_TYPES, UNIT_RESOURCE_TYPES
from dicom_etl.lake.shard_writer import ShardWriter
from dicom_etl.lake.tables import Lake
from dicom_etl.settings import FhirSettings, Settings, SettingsError
from dicom_etl.sources import SourceError
from dicom_etl.stages.build import build
from dicom_etl.stages.extract import extract
from tests.support.datasets import Tree, make_tree, uid, write_sheet
from tests.support.kill import KilledError

SITE = "https://dicom-etl.local"
SCT = "http://snomed.info/sct"
AUTHORITY = "urn:oid:1.2.3"


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Two subjects with a study and a PatientID each."""
    tree = make_tree(tmp_path)
    tree.write("sub-1/sam-1/1.dcm", PatientID="P-1")
    tree.write("sub-2/sam-1/1.dcm", PatientID="P-2")
    return tree


def rules(tree: Tree) -> dict[str, tuple[str, str, str]]:
    """Rule, value and state of the (one) study of each unit."""
    rows = tree.lake.read(IDENTITIES, dataset=tree.name).to_pylist()
    return {row["unit"]: (row["rule"], row["value"], row["state"]) for row in rows}


def patient_of(tree: Tree, unit: str) -> dict[str, Any]:
    """The one Patient of a unit."""
    (patient,) = tree.resources("Patient", unit)
    return patient


def study_of(tree: Tree, unit: str) -> dict[str, Any]:
    """The one ImagingStudy of a unit."""
    (study,) = tree.resources("ImagingStudy", unit)
    return study


def with_crosswalk(tree: Tree, *lines: tuple[str, str, str, str]) -> None:
    """Configure a crosswalk of these lines."""
    rows = [dict(zip(("dataset", "subject", "system", "value"), line, strict=True)) for line in lines]
    path = write_sheet(tree.root.parent / "crosswalk.csv", rows)
    tree.settings = tree.settings.model_copy(update={"crosswalk": str(path)})


def content(lake: Lake) -> dict[str, bytes]:
    """The files of a lake by path, without `lake.json`, which has a random id."""
    root = Path(lake.root)
    files = (path for path in sorted(root.rglob("*")) if path.is_file() and path.name != "lake.json")
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def all_resources(tree: Tree) -> list[dict[str, Any]]:
    """The resources of both units; the Endpoint once for each."""
    units = ("sub-1", "sub-2")
    return [resource for kind in RESOURCE_TYPES for unit in units for resource in tree.resources(kind, unit)]


def ids_of(tree: Tree) -> set[str]:
    """The ids of all resources of a dataset, and those that its tables and resources refer to."""
    lines = [json.dumps(resource) for resource in all_resources(tree)]
    patients = tree.lake.read(IDENTITIES, ["patient"], dataset=tree.name)["patient"].to_pylist()
    return {*re.findall(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", "\n".join(lines)), *patients}


class TestResources:
    def test_each_unit_has_a_patient_and_a_study(self, tree: Tree) -> None:
        tree.run()
        study, patient = study_of(tree, "sub-1"), patient_of(tree, "sub-1")
        (endpoint,) = tree.resources("Endpoint", "sub-1")
        assert study["subject"] == {"reference": f"Patient/{patient['id']}"}
        assert study["endpoint"] == [{"reference": f"Endpoint/{endpoint['id']}"}]
        assert study["identifier"][0]["value"] == f"urn:oid:{uid('ds/sub-1')}"
        assert endpoint["address"] == tree.root.resolve().as_uri()

    def test_every_resource_is_valid(self, tree: Tree) -> None:
        tree.run()
        resources = all_resources(tree)
        assert len(resources) == 6
        assert [find_errors(resource) for resource in resources] == [[]] * 6

    def test_a_patient_has_no_sds_identifier(self, tree: Tree) -> None:
        tree.run()
        assert [(i["system"], i["value"]) for i in patient_of(tree, "sub-1")["identifier"]] == [
            (f"{SITE}/ds/patient-id", "P-1")
        ]

    def test_the_result_counts_units_patients_and_studies(self, tree: Tree) -> None:
        tree.write("sub-2/sam-2/1.dcm", PatientID="P-2", study="another")
        built = tree.run()
        assert (built.units, built.units_processed, built.units_failed) == (2, 2, 0)
        assert (built.patients, built.studies, built.held) == (2, 3, 0)

    def test_several_studies_of_a_subject_have_one_patient(self, tree: Tree) -> None:
        tree.write("sub-1/sam-2/1.dcm", PatientID="P-1", study="another")
        tree.run()
        patient = patient_of(tree, "sub-1")
        studies = tree.resources("ImagingStudy", "sub-1")
        assert [study["subject"]["reference"] for study in studies] == [f"Patient/{patient['id']}"] * 2
        assert len({study["id"] for study in studies}) == 2

    def test_a_duplicate_is_counted_once(self, tree: Tree) -> None:
        tree.write("sub-1/sam-1/2.dcm", PatientID="P-1", instance="ds/sub-1/sam-1/1.dcm")
        tree.run()
        assert study_of(tree, "sub-1")["numberOfInstances"] == 1

    def test_files_outside_of_subject_folders_are_matched_by_patient_id(self, tmp_path: Path) -> None:
        tree = make_tree(tmp_path)
        tree.write("1.dcm", PatientID="P-1", study="loose")
        tree.run()
        assert rules(tree) == {".": ("patient-id", "P-1", "ok")}
        assert study_of(tree, ".")["identifier"][-1]["value"] == f"urn:uid:--{uid('loose')}"

    def test_the_same_input_gives_the_same_bytes_in_another_lake(self, tree: Tree, tmp_path: Path) -> None:
        tree.run()
        other = Tree(tree.root, Lake(str(tmp_path / "other"), lock_wait=0).open(), tree.name)
        other.run()
        assert content(other.lake) == content(tree.lake)

    def test_another_key_of_resource_ids_rebuilds_all_resources(self, tree: Tree, tmp_path: Path) -> None:
        tree.run()
        before = ids_of(tree)
        (tmp_path / "key").write_text("0f" * 32)
        tree.settings = Settings(id_key_file=str(tmp_path / "key"))
        assert tree.build().units_processed == 2
        assert len(ids_of(tree)) == len(before)
        assert ids_of(tree) & before == set()
        assert tree.build().units_processed == 0
        tree.settings = Settings()
        tree.build()
        assert ids_of(tree) == before

    def test_several_processes_give_the_same_bytes(
        self, tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tree.run()
        other = Tree(tree.root, Lake(str(tmp_path / "other"), lock_wait=0).open(), tree.name)
        other.crawl()
        other.extract()
        monkeypatch.setattr("dicom_etl.construction.building.FEW_SECONDS", 0)
        build(other.source, other.lake, other.settings, other.configured, Engine("processes", 2))
        assert content(other.lake) == content(tree.lake)

    def test_a_dataset_that_was_not_extracted_is_refused(self, tree: Tree) -> None:
        tree.crawl()
        with pytest.raises(SourceError, match="dataset ds: there are no header tables; extract it first"):
            tree.build()

    def test_a_dataset_that_another_run_has_locked_is_not_built(self, tree: Tree) -> None:
        tree.crawl()
        tree.extract()
        with tree.lake.lock("ds", "crawl of ds"), pytest.raises(LockHeldError, match="crawl of ds"):
            tree.build()
        assert not tree.lake.exists("identities/ds.parquet")


class TestPatientMatching:
    def test_a_study_with_two_patient_ids_is_held_with_a_finding(self, tree: Tree) -> None:
        tree.write("sub-1/sam-1/2.dcm", PatientID="P-9")
        built = tree.run()
        assert (built.studies, built.held) == (1, 1)
        assert rules(tree)["sub-1"][2] == "held"
        assert [tree.resources(kind, "sub-1") for kind in UNIT_RESOURCE_TYPES] == [[], []]
        assert [(f["code"], f["study_uid"]) for f in tree.findings("build", "sub-1")] == [
            ("study-two-patients", uid("ds/sub-1"))
        ]

    def test_a_study_under_two_subjects_is_held_and_counted_once(self, tree: Tree) -> None:
        for subject in ("sub-1", "sub-2"):
            tree.write(f"{subject}/sam-9/1.dcm", PatientID="P-1", study="roaming")
        built = tree.run()
        assert (built.studies, built.held) == (2, 1)
        assert [len(tree.resources("ImagingStudy", unit)) for unit in ("sub-1", "sub-2")] == [1, 1]
        assert "study-two-subjects" in tree.codes("build", "sub-1")
        assert "study-two-subjects" in tree.codes("build", "sub-2")

    def test_the_crosswalk_resolves_a_study_with_two_patient_ids(self, tree: Tree) -> None:
        tree.write("sub-1/sam-1/2.dcm", PatientID="P-9")
        with_crosswalk(tree, ("ds", "sub-1", "urn:x:persons", "p7"))
        assert tree.run().held == 0
        assert study_of(tree, "sub-1")["numberOfInstances"] == 2
        assert patient_of(tree, "sub-1")["identifier"] == [{"use": "usual", "system": "urn:x:persons", "value": "p7"}]

    def test_the_crosswalk_resolves_a_study_under_two_subjects(self, tmp_path: Path) -> None:
        tree = make_tree(tmp_path)
        for subject in ("sub-1", "sub-2"):
            tree.write(f"{subject}/sam-1/1.dcm", study="roaming")
        with_crosswalk(tree, ("ds", "sub-1", "urn:x:persons", "p7"), ("ds", "sub-2", "urn:x:persons", "p7"))
        built = tree.run()
        assert (built.patients, built.studies, built.held) == (1, 1, 0)
        assert study_of(tree, "sub-1")["numberOfInstances"] == 2
        assert tree.resources("ImagingStudy", "sub-2") == []

    def test_a_patient_id_of_a_second_subject_is_not_used(self, tree: Tree) -> None:
        tree.run()
        before = patient_of(tree, "sub-1")["id"]
        tree.write("sub-3/sam-1/1.dcm", PatientID="P-1")
        built = tree.run()
        assert rules(tree) == {
            "sub-1": ("subject", "sub-1", "ok"),
            "sub-2": ("patient-id", "P-2", "ok"),
            "sub-3": ("subject", "sub-3", "ok"),
        }
        assert built.units_processed == 2  # sub-1 and sub-3, not sub-2
        assert patient_of(tree, "sub-1")["id"] != before
        assert patient_of(tree, "sub-1")["identifier"][0]["value"] == "sub-1"
        assert "patient-id-shared" in tree.codes("build", "sub-1")

    def test_two_datasets_share_a_patient_under_one_authority(self, tmp_path: Path) -> None:
        breast = make_tree(tmp_path, "breast", assigning_authority=AUTHORITY)
        heart = make_tree(tmp_path, "heart", lake=breast.lake, assigning_authority=AUTHORITY)
        for tree in (breast, heart):
            tree.write("sub-1/sam-1/1.dcm", PatientID="P-1")
            tree.run()
        assert patient_of(breast, "sub-1") == patient_of(heart, "sub-1")
        assert study_of(breast, "sub-1")["id"] != study_of(heart, "sub-1")["id"]

    def test_equal_patient_ids_without_an_authority_are_two_patients(self, tmp_path: Path) -> None:
        breast = make_tree(tmp_path, "breast")
        heart = make_tree(tmp_path, "heart", lake=breast.lake)
        for tree in (breast, heart):
            tree.write("sub-1/sam-1/1.dcm", PatientID="P-1", IssuerOfPatientID="HIS")
            tree.run()
        assert patient_of(breast, "sub-1")["id"] != patient_of(heart, "sub-1")["id"]

    def test_two_datasets_share_a_patient_by_the_crosswalk(self, tmp_path: Path) -> None:
        breast = make_tree(tmp_path, "breast")
        heart = make_tree(tmp_path, "heart", lake=breast.lake)
        for tree in (breast, heart):
            tree.write("sub-1/sam-1/1.dcm", PatientID=f"P-{tree.name}")
            with_crosswalk(tree, ("breast", "sub-1", "urn:x:persons", "p7"), ("heart", "sub-1", "urn:x:persons", "p7"))
            tree.run()
        assert patient_of(breast, "sub-1") == patient_of(heart, "sub-1")

    def test_a_study_in_two_datasets_is_two_resources(self, tmp_path: Path) -> None:
        breast = make_tree(tmp_path, "breast")
        heart = make_tree(tmp_path, "heart", lake=breast.lake)
        for tree in (breast, heart):
            tree.write("sub-1/sam-1/1.dcm", study="same")
            tree.run()
        assert study_of(breast, "sub-1")["id"] != study_of(heart, "sub-1")["id"]

    def test_the_issuer_in_a_header_is_the_system_of_the_patient(self, tmp_path: Path) -> None:
        tree = make_tree(tmp_path)
        qualifiers = [{"UniversalEntityID": "1.9.9", "UniversalEntityIDType": "ISO"}]
        tree.write("sub-1/sam-1/1.dcm", PatientID="P-1", IssuerOfPatientIDQualifiersSequence=qualifiers)
        tree.run()
        assert patient_of(tree, "sub-1")["identifier"][0]["system"] == "urn:oid:1.9.9"

    def test_a_removed_identity_stays_within_its_dataset(self, tmp_path: Path) -> None:
        tree = make_tree(tmp_path, assigning_authority=AUTHORITY)
        tree.write("sub-1/sam-1/1.dcm", PatientID="P-1", PatientIdentityRemoved="YES")
        tree.run()
        assert rules(tree)["sub-1"] == ("patient-id", "P-1", "ok")

    def test_an_invalid_crosswalk_stops_the_build_before_it_writes(self, tree: Tree) -> None:
        tree.run()
        before = content(tree.lake)
        with_crosswalk(tree, ("ds", "sub-1", "urn:x:persons", ""))
        with pytest.raises(SettingsError, match=r"line 2 of the crosswalk .* has no value in column"):
            tree.build()
        assert content(tree.lake) == before

    def test_the_subjects_sheet_fills_in_a_missing_sex(self, tmp_path: Path) -> None:
        tree = make_tree(tmp_path)
        tree.write("sub-1/sam-1/1.dcm", PatientSex="")
        tree.sheet("subjects", {"subject id": "sub-1", "sex": "Male"}, {"subject id": "sub-2", "sex": "Female"})
        tree.run()
        assert patient_of(tree, "sub-1")["gender"] == "male"


class TestIncrementalBuild:
    def test_without_a_change_nothing_is_built(self, tree: Tree) -> None:
        tree.run()
        before = content(tree.lake)
        assert tree.run().units_processed == 0
        assert content(tree.lake) == before

    def test_force_rebuilds_everything_with_the_same_bytes(self, tree: Tree) -> None:
        tree.run()
        before = content(tree.lake)
        assert tree.build(force=True).units_processed == 2
        assert content(tree.lake) == before

    def test_only_the_selected_subjects_are_built(self, tree: Tree) -> None:
        tree.crawl()
        tree.extract()
        assert tree.build(subjects=["sub-2"]).units_processed == 1
        assert tree.resources("ImagingStudy", "sub-1") == []
        assert tree.build().units_processed == 1
        assert len(tree.resources("ImagingStudy", "sub-1")) == 1

    def test_a_new_file_rebuilds_only_its_unit(self, tree: Tree) -> None:
        tree.run()
        tree.write("sub-2/sam-1/2.dcm", PatientID="P-2")
        assert tree.run().units_processed == 1
        assert study_of(tree, "sub-2")["numberOfInstances"] == 2

    def test_another_time_zone_rebuilds_all_units(self, tree: Tree) -> None:
        tree.run()
        tree.dataset_settings = {"time_zone": "Pacific/Auckland"}
        assert tree.build().units_processed == 2
        assert study_of(tree, "sub-1")["started"] == "2024-01-05T10:15:00+13:00"

    def test_the_time_zone_of_the_dataset_takes_precedence(self, tree: Tree) -> None:
        tree.settings = Settings(time_zone="Europe/Berlin")
        tree.dataset_settings = {"time_zone": "Pacific/Auckland"}
        tree.run()
        assert study_of(tree, "sub-1")["started"] == "2024-01-05T10:15:00+13:00"
        tree.dataset_settings = {}
        tree.build()
        assert study_of(tree, "sub-1")["started"] == "2024-01-05T10:15:00+01:00"

    @pytest.mark.parametrize(
        "change",
        [
            {"namespace": "https://other.example"},
            {"staff_names": True},
            {"sds_dataset_system": "urn:x:datasets"},
            {"sds_study_system": "urn:x:studies"},
        ],
        ids=lambda change: next(iter(change)),
    )
    def test_a_setting_of_the_mapping_rebuilds_all_units(self, tree: Tree, change: dict[str, Any]) -> None:
        tree.run()
        tree.settings = Settings(**change)
        assert tree.build().units_processed == 2

    @pytest.mark.parametrize("change", [{"workers": 1}, {"lock_wait_seconds": 1}, {"reference_date": "2024-01-01"}])
    def test_another_setting_rebuilds_nothing(self, tree: Tree, change: dict[str, Any]) -> None:
        tree.run()
        tree.settings = Settings(**change)
        assert tree.build().units_processed == 0

    def test_another_address_changes_only_the_endpoint(self, tree: Tree) -> None:
        tree.run()
        tree.dataset_settings = {"endpoint": "https://pacs.example/rs"}
        assert tree.build().units_processed == 0
        assert tree.resources("Endpoint", "sub-1")[0]["address"] == "https://pacs.example/rs"

    def test_a_row_of_the_subjects_sheet_rebuilds_only_its_subject(self, tree: Tree) -> None:
        rows = [{"subject id": "sub-1", "sex": "Female"}, {"subject id": "sub-2", "sex": "Female"}]
        tree.sheet("subjects", *rows)
        tree.run()
        tree.sheet("subjects", {"subject id": "sub-1", "sex": "Male"}, rows[1])
        assert tree.run().units_processed == 1
        assert "sheet-conflict" in tree.codes("build", "sub-1")
        assert "sheet-conflict" not in tree.codes("build", "sub-2")

    def test_another_sheet_rebuilds_nothing(self, tree: Tree) -> None:
        tree.run()
        tree.sheet("samples", {"sample id": "sam-1", "subject id": "sub-1", "sample type": "tissue"})
        assert tree.run().units_processed == 0

    def test_a_cell_of_the_samples_sheet_rebuilds_only_its_subject(self, tree: Tree) -> None:
        rows = [{"sample id": "sam-1", "subject id": f"sub-{n}", "laterality": "Left"} for n in (1, 2)]
        tree.sheet("samples", *rows)
        tree.run()
        tree.sheet("samples", rows[0] | {"laterality": "Right"}, rows[1])
        assert tree.run().units_processed == 1
        assert study_of(tree, "sub-1")["series"][0]["laterality"]["display"] == "Right"

    def test_a_crosswalk_entry_rebuilds_only_its_subject(self, tree: Tree) -> None:
        with_crosswalk(tree, ("ds", "sub-2", "urn:x:persons", "p8"))
        tree.run()
        with_crosswalk(tree, ("ds", "sub-2", "urn:x:persons", "p8"), ("ds", "sub-1", "urn:x:persons", "p7"))
        assert tree.build().units_processed == 1
        assert patient_of(tree, "sub-1")["identifier"][0]["value"] == "p7"

    def test_a_crosswalk_entry_of_another_dataset_rebuilds_nothing(self, tree: Tree) -> None:
        with_crosswalk(tree, ("ds", "sub-2", "urn:x:persons", "p8"))
        tree.run()
        with_crosswalk(tree, ("ds", "sub-2", "urn:x:persons", "p8"), ("other", "sub-1", "urn:x:persons", "p7"))
        assert tree.build().units_processed == 0

    def test_another_authority_rebuilds_all_units(self, tree: Tree) -> None:
        tree.run()
        tree.dataset_settings = {"assigning_authority": AUTHORITY}
        assert tree.build().units_processed == 2

    def test_a_file_in_the_second_unit_of_a_study_rebuilds_the_first(self, tmp_path: Path) -> None:
        tree = make_tree(tmp_path)
        for subject in ("sub-1", "sub-2"):
            tree.write(f"{subject}/sam-1/1.dcm", study="roaming")
        tree.write("sub-3/sam-1/1.dcm", PatientID="P-3")
        with_crosswalk(tree, ("ds", "sub-1", "urn:x:persons", "p7"), ("ds", "sub-2", "urn:x:persons", "p7"))
        tree.run()
        tree.write("sub-2/sam-1/2.dcm", study="roaming")
        assert tree.run().units_processed == 2
        assert study_of(tree, "sub-1")["numberOfInstances"] == 3

    def test_another_version_of_the_mapping_rebuilds_all_units(
        self, tree: Tree, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tree.run()
        monkeypatch.setattr("dicom_etl.fhir.imaging_study.MAPPING_VERSION", 1000)
        assert tree.build().units_processed == 2

    def test_the_resources_of_a_removed_unit_are_removed(self, tree: Tree) -> None:
        tree.run()
        (tree.root / "primary/sub-2/sam-1/1.dcm").unlink()
        tree.run(accept_missing=True)
        (commit,) = read_commits(tree.lake, "build", "ds").values()
        assert list(commit.rows) == ["sub-1"]
        assert [tree.resources(kind, "sub-2") for kind in UNIT_RESOURCE_TYPES] == [[], []]
        assert len(tree.lake.read_bytes("fhir/ImagingStudy/ds/0000.ndjson").splitlines()) == 1
        assert tree.findings("build", "sub-2") == []
        assert list(rules(tree)) == ["sub-1"]


def changed_zone(tree: Tree, **settings: str) -> Tree:
    """The same dataset in a new lake, built with these settings."""
    whole = Tree(tree.root, Lake(f"{tree.lake.root}-2", lock_wait=0).open(), "ds", dataset_settings=settings)
    whole.run()
    return whole


class TestKillsAndDamage:
    @pytest.mark.parametrize("moment", ["Patient", "ImagingStudy", "fhir_elements", "findings", "commit"])
    def test_a_kill_before_the_commit_leaves_the_previous_shard(
        self, tree: Tree, monkeypatch: pytest.MonkeyPatch, moment: str
    ) -> None:
        tree.run()
        before = content(tree.lake)
        tree.dataset_settings = {"time_zone": "Pacific/Auckland"}

        def killed_at(name: str, method: Callable[..., None]) -> Callable[..., None]:
            def write(writer: ShardWriter, kind: Any, *args: Any) -> None:
                if moment in (name, kind, getattr(kind, "name", None)):
                    raise KilledError
                method(writer, kind, *args)

            return write

        with monkeypatch.context() as patch:
            for name in ("write_lines", "write_table", "commit"):
                patch.setattr(ShardWriter, name, killed_at(name, getattr(ShardWriter, name)))
            with pytest.raises(KilledError):
                tree.build()
        visible = {path: bytes_ for path, bytes_ in content(tree.lake).items() if "/." not in path and path[0] != "."}
        # the footer of the findings of the dataset no longer has the state of the last build
        with_state = "findings/build/ds/dataset.parquet"
        assert {path: bytes_ for path, bytes_ in visible.items() if path != with_state} == {
            path: bytes_ for path, bytes_ in before.items() if path != with_state
        }
        assert tree.lake.read_fingerprint(DATASET_FINDINGS, stage="build", dataset="ds") == ""
        assert tree.build().units_processed == 2
        assert content(tree.lake) == content(changed_zone(tree, **tree.dataset_settings).lake)

    @pytest.mark.parametrize("writes", range(1, 6))
    def test_after_a_kill_previous_settings_give_previous_resources(
        self, tree: Tree, monkeypatch: pytest.MonkeyPatch, writes: int
    ) -> None:
        tree.run()
        before = content(tree.lake)
        previous_settings = tree.dataset_settings
        tree.dataset_settings = {"time_zone": "Pacific/Auckland", "endpoint": "https://pacs.example/rs"}
        replace = Path.replace
        written: list[Path] = []

        def killed_at(path: Path, target: Path) -> Path:
            if path.suffix == ".tmp" and ".chunks" not in path.parts:
                if len(written) == writes:
                    raise KilledError
                written.append(target)
            return replace(path, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", killed_at)
            with suppress(KilledError):
                tree.build()
        tree.dataset_settings = previous_settings
        tree.build()
        assert content(tree.lake) == before

    @pytest.mark.parametrize("renames", range(5))
    def test_a_kill_within_the_commit_is_completed_by_the_next_run(
        self, tree: Tree, monkeypatch: pytest.MonkeyPatch, renames: int
    ) -> None:
        tree.run()
        tree.dataset_settings = {"time_zone": "Pacific/Auckland"}
        replace = Path.replace
        done: list[Path] = []

        def killed_at(path: Path, target: Path) -> Path:
            if path.name.endswith((".new", "0000.parquet.pending")):
                if len(done) == renames:
                    raise KilledError
                done.append(path)
            return replace(path, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", killed_at)
            with pytest.raises(KilledError):
                tree.build()
        assert tree.build().units_processed == 0
        assert content(tree.lake) == content(changed_zone(tree, **tree.dataset_settings).lake)

    def test_units_without_a_commit_are_rebuilt(self, tree: Tree) -> None:
        tree.run()
        before = content(tree.lake)
        tree.lake.remove("commits/build/ds/0000.parquet")
        assert tree.build().units_processed == 2
        assert content(tree.lake) == before

    @pytest.mark.parametrize("kind", RESOURCE_TYPES)
    def test_a_missing_file_of_resources_is_rebuilt(self, tree: Tree, kind: str) -> None:
        tree.run()
        before = content(tree.lake)
        tree.lake.remove(f"fhir/{kind}/ds/0000.ndjson")
        tree.build()
        assert content(tree.lake) == before

    def test_an_altered_line_is_reported_and_rebuilt(self, tree: Tree) -> None:
        tree.run()
        before = content(tree.lake)
        path = Path(tree.lake.root, "fhir/ImagingStudy/ds/0000.ndjson")
        path.write_bytes(path.read_bytes().replace(b"2024-01-05", b"2024-01-06", 1))
        with pytest.raises(
            DamagedShardError,
            match=r"^fhir/ImagingStudy/ds/0000\.ndjson.* does not match its commit",
        ):
            tree.resources("ImagingStudy", "sub-1")
        tree.write("sub-2/sam-1/2.dcm", PatientID="P-2")  # its shard is rewritten
        assert tree.run().units_processed == 2
        (tree.root / "primary/sub-2/sam-1/2.dcm").unlink()
        tree.run(accept_missing=True)
        assert content(tree.lake) == before

    def test_a_unit_whose_extraction_fails_keeps_its_resources(self, tree: Tree) -> None:
        tree.run()
        tree.write("sub-2/sam-1/2.dcm", PatientID="P-2")
        tree.crawl()
        failing = Mock(wraps=tree.source, dataset="ds", location=tree.source.location)
        failing.open.side_effect = RuntimeError("unexpected")
        assert extract(failing, tree.lake, Engine()).units_failed == 1
        built = tree.build()
        assert (built.units, built.units_processed) == (2, 0)
        assert study_of(tree, "sub-2")["numberOfInstances"] == 1
        assert set(rules(tree)) == {"sub-1", "sub-2"}


class TestSamplesSheet:
    ROW: ClassVar = {
        "sample id": "sam-1",
        "subject id": "sub-3",
        "sample anatomical location": "Breast",
        "laterality": "left",
    }

    def test_the_samples_sheet_fills_in_values_with_a_note(self, tree: Tree) -> None:
        tree.write("sub-3/sam-1/1.dcm", PatientID="P-3", BodyPartExamined=None)
        tree.sheet("samples", self.ROW)
        tree.run()
        study = study_of(tree, "sub-3")
        assert study["series"][0]["bodySite"] == {"system": SCT, "code": "76752008", "display": "Breast"}
        assert study["series"][0]["laterality"] == {"system": SCT, "code": "7771000", "display": "Left"}
        assert [note["text"] for note in study["note"]] == [
            "bodySite from the samples sheet",
            "laterality from the samples sheet",
        ]
        assert [f["tag"] for f in tree.findings("build", "sub-3") if f["code"] == "value-from-sheet"] == [
            "00180015",
            "00200060",
        ]

    def test_the_header_takes_precedence_over_the_samples_sheet(self, tree: Tree) -> None:
        tree.write("sub-3/sam-1/1.dcm", PatientID="P-3", BodyPartExamined="HEART", Laterality="R")
        tree.sheet("samples", self.ROW)
        tree.run()
        series = study_of(tree, "sub-3")["series"][0]
        assert (series["bodySite"]["display"], series["laterality"]["display"]) == ("Heart", "Right")
        assert "note" not in study_of(tree, "sub-3")

    def test_a_series_of_samples_of_two_sides_has_no_laterality(self, tree: Tree) -> None:
        for sample in ("sam-1", "sam-2"):
            tree.write(f"sub-3/{sample}/1.dcm", PatientID="P-3", series="one")
        tree.sheet(
            "samples",
            {"sample id": "sam-1", "subject id": "sub-3", "laterality": "Left"},
            {"sample id": "sam-2", "subject id": "sub-3", "laterality": "Right"},
        )
        tree.run()
        assert "laterality" not in study_of(tree, "sub-3")["series"][0]


def with_corrections(tree: Tree, *lines: dict[str, str]) -> None:
    """Configure a corrections file of these lines."""
    columns = ("dataset", "subject", "sample", "study", "series", "tag", "value", "reason")
    rows = [{column: line.get(column, "") for column in columns} for line in lines]
    path = write_sheet(tree.root.parent / "corrections.csv", rows)
    tree.settings = tree.settings.model_copy(update={"corrections": str(path)})


class TestCorrections:
    def test_a_correction_of_a_whole_dataset_has_a_note_and_a_finding(self, tree: Tree) -> None:
        tree.run()
        before = tree.lake.read_bytes("headers/ds/0000.parquet")
        with_corrections(
            tree, {"dataset": "ds", "tag": "BodyPartExamined", "value": "HEART", "reason": "all are hearts"}
        )
        assert tree.build().units_processed == 2
        for unit in ("sub-1", "sub-2"):
            study = study_of(tree, unit)
            assert study["series"][0]["bodySite"] == {"system": SCT, "code": "80891009", "display": "Heart"}
            assert study["note"] == [{"text": "bodySite as corrected by the data's stewards"}]
            (finding,) = [f for f in tree.findings("build", unit) if f["code"] == "value-corrected"]
            values = (finding["severity"], finding["tag"], finding["value"], finding["count"])
            assert values == ("info", "00180015", "HEART", 1)
            assert "line 2" in finding["message"]
            assert "all are hearts" in finding["message"]
            assert find_errors(study) == []
        assert tree.lake.read_bytes("headers/ds/0000.parquet") == before

    def test_a_correction_of_one_subject_rebuilds_only_this_subject(self, tree: Tree) -> None:
        tree.run()
        with_corrections(tree, {"dataset": "ds", "subject": "sub-2", "tag": "StudyDate", "value": "2020-02-03"})
        assert tree.build().units_processed == 1
        assert study_of(tree, "sub-2")["started"].startswith("2020-02-03")
        assert not study_of(tree, "sub-1")["started"].startswith("2020-02-03")
        assert tree.build().units_processed == 0

    def test_a_laterality_is_corrected_at_every_level(self, tree: Tree) -> None:
        tree.write("sub-3/sam-1/1.dcm", PatientID="P-3", ImageLaterality="L")
        with_corrections(
            tree, {"dataset": "ds", "subject": "sub-3", "sample": "sam-1", "tag": "Laterality", "value": "R"}
        )
        tree.run()
        assert study_of(tree, "sub-3")["series"][0]["laterality"]["display"] == "Right"

    def test_a_value_can_be_removed_and_a_later_line_overrides(self, tree: Tree) -> None:
        with_corrections(
            tree,
            {"dataset": "ds", "tag": "StudyDescription", "value": ""},
            {"dataset": "ds", "subject": "sub-2", "tag": "StudyDescription", "value": "Follow-up"},
        )
        tree.write("sub-1/sam-1/1.dcm", PatientID="P-1", StudyDescription="Secret")
        tree.run()
        assert "description" not in study_of(tree, "sub-1")
        assert study_of(tree, "sub-2")["description"] == "Follow-up"

    def test_a_correction_of_a_series_by_its_uid(self, tree: Tree) -> None:
        tree.write("sub-1/sam-2/1.dcm", PatientID="P-1")
        series = uid("ds/sub-1/sam-2")
        with_corrections(tree, {"dataset": "ds", "series": series, "tag": "Modality", "value": "CT"})
        tree.run()
        modalities = {item["uid"]: item["modality"]["code"] for item in study_of(tree, "sub-1")["series"]}
        assert modalities == {series: "CT", uid("ds/sub-1/sam-1"): "MR"}

    def test_a_line_without_a_match_is_a_finding(self, tree: Tree) -> None:
        with_corrections(tree, {"dataset": "ds", "subject": "sub-9", "tag": "Laterality", "value": "R"})
        with_crosswalk(tree, ("ds", "sub-8", "urn:x:persons", "p8"))
        tree.run()
        assert [(f["code"], f["subject"]) for f in tree.findings("build")] == [
            ("correction-unmatched", "sub-9"),
            ("crosswalk-unmatched", "sub-8"),
        ]

    def test_corrections_of_another_dataset_are_ignored(self, tree: Tree) -> None:
        tree.run()
        with_corrections(tree, {"dataset": "other", "tag": "Laterality", "value": "R"})
        assert tree.build().units_processed == 0
        assert tree.findings("build") == []


class TestStrictMode:
    @pytest.mark.parametrize(
        "tags",
        [
            {"SeriesNumber": -3},  # an optional value that FHIR cannot represent
            {"Modality": ""},  # of its second series
            {"Laterality": "X"},
            {"PatientSex": "Q"},  # of its Patient
        ],
    )
    def test_an_invalid_value_is_omitted_or_in_strict_mode_holds_the_study(
        self, tree: Tree, tags: dict[str, Any]
    ) -> None:
        tree.write("sub-1/sam-2/1.dcm", PatientID="P-1", **tags)
        if "PatientSex" in tags:
            tree.write("sub-1/sam-1/1.dcm", PatientID="P-1", **tags)
        built = tree.run()
        assert (built.studies, built.held) == (2, 0)
        lenient = study_of(tree, "sub-1")
        assert not {"study-held"} & set(tree.codes("build", "sub-1"))
        assert lenient["numberOfSeries"] == 2 - ("Modality" in tags)

        tree.settings = Settings(fhir=FhirSettings(strict=True))
        built = tree.build()
        assert (built.studies, built.held) == (1, 1)
        assert tree.resources("ImagingStudy", "sub-1") == []
        assert len(tree.resources("ImagingStudy", "sub-2")) == 1
        (finding,) = [f for f in tree.findings("build", "sub-1") if f["code"] == "study-held"]
        assert finding["severity"] == "error"
        assert "strict" in finding["message"]
        assert tree.build().held == 1  # also if nothing is built

    def test_a_study_without_valid_instances_is_held(self, tree: Tree) -> None:
        tree.write("sub-1/sam-1/1.dcm", PatientID="P-1", Modality="")
        built = tree.run()
        assert (built.studies, built.held) == (1, 1)
        assert sorted(tree.codes("build", "sub-1")) == ["instance-excluded", "study-held"]


class TestR5:
    def test_another_version_of_fhir_rebuilds_all_units(self, tree: Tree) -> None:
        tree.write(
            "sub-1/sam-1/1.dcm", PatientID="P-1", AccessionNumber="A-1", BodyPartExamined="HEART", Laterality="L"
        )
        tree.run()
        tree.settings = Settings(fhir=FhirSettings(version="R5"))
        assert tree.build().units_processed == 2
        resources = all_resources(tree)
        assert len(resources) == 6
        assert [find_errors(resource, "R5") for resource in resources] == [[]] * 6
        study = study_of(tree, "sub-1")
        heart = {"system": SCT, "code": "80891009", "display": "Heart"}
        assert study["series"][0]["bodySite"] == {"concept": {"coding": [heart]}}
        assert study["basedOn"][0]["identifier"]["value"] == "A-1"


def fail_for_sub_1(
    resource_id: str, match: PatientMatch, rows: HeaderRows, context: Context, findings: FindingCollector
) -> dict[str, Any]:
    if findings.unit == "sub-1":
        raise RuntimeError("broken")
    return make_patient(resource_id, match, rows, context, findings)


class TestFailures:
    def test_a_build_of_one_subject_keeps_the_findings_of_others(
        self, tree: Tree, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tree.crawl()
        tree.extract()
        with monkeypatch.context() as patch:
            patch.setattr("dicom_etl.fhir.patient.make_patient", fail_for_sub_1)
            tree.build()
        tree.build(subjects=["sub-2"], force=True)
        assert tree.codes("build") == ["build-failed"]

    def test_a_unit_that_fails_keeps_its_previous_resources(self, tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
        tree.run()
        before = study_of(tree, "sub-1")
        tree.dataset_settings = {"time_zone": "Pacific/Auckland"}
        with monkeypatch.context() as patch:
            patch.setattr("dicom_etl.fhir.patient.make_patient", fail_for_sub_1)
            built = tree.build()
        assert (built.units_processed, built.units_failed) == (1, 1)
        assert study_of(tree, "sub-1") == before
        assert study_of(tree, "sub-2")["started"] == "2024-01-05T10:15:00+13:00"
        assert [(f["code"], f["unit"], f["message"]) for f in tree.findings("build")] == [
            ("build-failed", "sub-1", "RuntimeError: broken")
        ]
        assert (tree.build().units_processed, tree.findings("build")) == (1, [])

    def test_an_invalid_resource_is_not_written_with_a_finding(
        self, tree: Tree, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            "dicom_etl.construction.unit_resources.find_errors",
            lambda resource, _version: ["it is odd"] * (resource["resourceType"] == "ImagingStudy"),
        )
        tree.run()
        assert tree.resources("ImagingStudy", "sub-1") == []
        assert len(tree.resources("Patient", "sub-1")) == 1
        (finding,) = [f for f in tree.findings("build", "sub-1") if f["code"] == "resource-invalid"]
        assert finding["message"].endswith(": it is odd")

    def test_progress_counts_the_rows_of_the_units_that_are_built(self, tree: Tree) -> None:
        tree.write("sub-2/sam-1/2.dcm", PatientID="P-2")
        tree.crawl()
        tree.extract()
        reported: list[tuple[str, int, int]] = []
        tree.build(progress=lambda title, done, total: reported.append((title, done, total)))
        assert reported == [("build ds", 3, 3)]

    def test_a_series_in_two_studies_is_a_finding(self, tree: Tree) -> None:
        tree.write("sub-1/sam-2/1.dcm", PatientID="P-1", study="another", series="ds/sub-1/sam-1")
        tree.run()
        assert "series-two-studies" in tree.codes("build", "sub-1")
        assert [study["numberOfSeries"] for study in tree.resources("ImagingStudy", "sub-1")] == [1, 1]
