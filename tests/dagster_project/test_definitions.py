"""The Dagster project: its definitions, its automation, and the six assets over the example datasets."""

import json
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest

from assets.automation import changed_datasets, find_changes, nightly
from assets.partitions import find_dataset
from definitions import build_defs
from dicom_etl.examples import write_examples
from dicom_etl.inspection.snapshot import take_snapshot
from dicom_etl.pipeline import Pipeline, run
from dicom_etl.settings import load_settings
from dicom_etl.stages.withdraw import withdraw
from resources import PipelineResource

ROOT = Path(__file__).parents[2]
ASSETS = {
    "dicom_files": set(),
    "header_table": {"dicom_files"},
    "fhir_resources": {"header_table"},
    "fhir_upload": {"fhir_resources"},
    "tag_completeness": {"fhir_resources"},
    "quality_report": {"tag_completeness"},
}


@pytest.fixture
def settings_file(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("DICOM_ETL_ENGINE", "serial")
    return write_examples(tmp_path / "demo").settings_file


def load(settings_file: Path, dataset: str, instance: dg.DagsterInstance, **config) -> dg.ExecuteInProcessResult:
    defs = build_defs(resource_overrides={"etl": PipelineResource(settings_file=str(settings_file))})
    instance.add_dynamic_partitions("dataset", [dataset])
    ops = {name: {"config": config} for name in ASSETS if name != "quality_report"} if config else {}
    return defs.resolve_job_def("load_dataset").execute_in_process(
        partition_key=dataset, instance=instance, run_config={"ops": ops}, raise_on_error=False
    )


def facts(result: dg.ExecuteInProcessResult, asset: str) -> dict:
    [made] = result.asset_materializations_for_node(asset)
    return {key: value.value for key, value in made.metadata.items()}


class TestDefinitions:
    def test_all_definitions_are_listed(self):
        defs = build_defs()
        dg.Definitions.validate_loadable(defs)
        graph = defs.resolve_asset_graph()
        found = {
            key.to_user_string(): {parent.to_user_string() for parent in graph.get(key).parent_keys}
            for key in graph.get_all_asset_keys()
        }
        assert found == ASSETS
        assert {key.name for key in graph.asset_check_keys} == {
            "has_instances",
            "files_readable",
            "studies_not_held",
            "server_has_all",
        }
        assert all(graph.get(key).partitions_def.name == "dataset" for key in graph.get_all_asset_keys())
        assert [sensor.name for sensor in defs.sensors] == ["changed_datasets"]
        assert [schedule.name for schedule in defs.schedules] == ["nightly"]


class TestJob:
    def test_the_job_loads_a_dataset_and_reports_its_numbers(self, settings_file):
        with dg.DagsterInstance.ephemeral() as instance:
            result = load(settings_file, "heart", instance)
            assert result.success
            assert facts(result, "header_table")["dagster/row_count"] == 47
            assert facts(result, "fhir_resources")["studies"] == 9
            assert Path(facts(result, "quality_report")["report"]).is_file()
            assert all(Path(facts(result, asset)["folder"]).exists() for asset in ASSETS)
            assert "nothing was uploaded" in facts(result, "fhir_upload")["note"]
            checks = {e.check_name: e.passed for e in result.get_asset_check_evaluations()}
        assert checks == {
            "has_instances": True,
            "files_readable": False,
            "studies_not_held": True,
            "server_has_all": True,
        }

    def test_a_second_run_processes_nothing(self, settings_file):
        with dg.DagsterInstance.ephemeral() as instance:
            load(settings_file, "heart", instance)
            again = load(settings_file, "heart", instance)
        assert facts(again, "header_table")["units_processed"] == 0
        assert facts(again, "header_table")["files_opened"] == 0
        assert facts(again, "fhir_resources")["units_processed"] == 0

    def test_run_configuration_limits_a_run_to_subjects(self, settings_file):
        with dg.DagsterInstance.ephemeral() as instance:
            load(settings_file, "heart", instance)
            forced = load(settings_file, "heart", instance, subjects=["sub-1"], force=True)
        assert facts(forced, "header_table")["units_processed"] == 1

    def test_a_dataset_without_dicom_fails_the_run_with_its_sentence(self, settings_file):
        shutil.rmtree(settings_file.parent / "heart")
        (settings_file.parent / "heart").mkdir()
        with dg.DagsterInstance.ephemeral() as instance:
            result = load(settings_file, "heart", instance)
        assert not result.success
        [failed] = result.get_step_failure_events()
        assert "no file that could be DICOM" in str(failed.step_failure_data.error.to_string())


class TestAutomation:
    def test_a_partition_key_identifies_its_dataset(self, tmp_path):
        (tmp_path / "in/heart, left").mkdir(parents=True)
        (tmp_path / "s.toml").write_text(f"watch_folders = ['{tmp_path}/in']\n")
        pipeline = Pipeline(load_settings(tmp_path / "s.toml"))
        assert find_dataset(pipeline, "heart%2C%20left") == "heart, left"
        with pytest.raises(dg.Failure, match="not a registered dataset"):
            find_dataset(pipeline, "heart")

    @pytest.mark.parametrize(
        ("before", "now", "changed"),
        [
            ({}, {"a": "1", "b": "1"}, ["a", "b"]),
            ({"a": "1", "b": "1"}, {"a": "1", "b": "2"}, ["b"]),
            ({"a": "1", "b": "1"}, {"a": "1"}, []),
            ({"a": "1"}, {"a": "1", "c": "9"}, ["c"]),
        ],
    )
    def test_datasets_that_are_new_or_different_have_changed(self, before, now, changed):
        assert find_changes(before, now) == changed

    def test_a_new_file_or_setting_changes_the_snapshot(self, settings_file):
        def look() -> dict[str, str]:
            pipeline = Pipeline(load_settings(settings_file))
            return {name: take_snapshot(pipeline, name) for name in pipeline.datasets()}

        first = look()
        assert look() == first
        (settings_file.parent / "heart/primary/sub-1/sam-1/new.dcm").write_bytes(b"new")
        second = look()
        assert [name for name in second if second[name] != first[name]] == ["heart"]
        text = settings_file.read_text().replace('time_zone = "Pacific/Auckland"', 'time_zone = "UTC"', 1)
        settings_file.write_text(text)
        third = look()
        assert [name for name in third if third[name] != second[name]] == ["breast"]

    def test_the_sensor_requests_runs_of_new_and_changed_datasets(self, settings_file):
        etl = PipelineResource(settings_file=str(settings_file))
        with dg.DagsterInstance.ephemeral() as instance:
            first = changed_datasets(dg.build_sensor_context(instance=instance, resources={"etl": etl}))
            (settings_file.parent / "breast/primary/sub-1/sam-1/new.dcm").write_bytes(b"new")
            later = dg.build_sensor_context(instance=instance, cursor=first.cursor, resources={"etl": etl})
            second = changed_datasets(later)
        assert sorted(request.partition_key for request in first.run_requests) == ["breast", "heart"]
        assert first.dynamic_partitions_requests[0].partition_keys == ["breast", "heart"]
        assert [request.partition_key for request in second.run_requests] == ["breast"]

    def test_a_withdrawn_dataset_is_not_requested(self, settings_file, tmp_path):
        pipeline = Pipeline(load_settings(settings_file))
        run(pipeline, ["breast", "heart"], ["crawl"])
        withdraw("breast", None, pipeline.lake, pipeline.settings)
        etl = PipelineResource(settings_file=str(settings_file))
        with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
            seen = changed_datasets(dg.build_sensor_context(instance=instance, resources={"etl": etl}))
            at_two = dg.build_schedule_context(
                instance=instance, scheduled_execution_time=datetime(2026, 1, 2, 2, tzinfo=UTC), resources={"etl": etl}
            )
            asked = list(nightly(at_two))
            partitions = instance.get_dynamic_partitions("dataset")
        assert [request.partition_key for request in seen.run_requests] == ["heart"]
        assert [(request.partition_key, request.run_key) for request in asked] == [("heart", "2026-01-02:heart")]
        assert partitions == ["heart"]


class TestRepository:
    def test_the_code_location_loads_from_another_directory(self, tmp_path):
        command = [
            str(Path(sys.executable).with_name("dagster")),
            "definitions",
            "validate",
            "-w",
            str(ROOT / "workspace.yaml"),
        ]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr

    def test_asset_bodies_stay_under_a_dozen_lines(self):
        import ast

        tree = ast.parse((ROOT / "assets/stages.py").read_text())
        bodies = {
            node.name: node.end_lineno - node.body[0].lineno for node in tree.body if isinstance(node, ast.FunctionDef)
        }
        assert set(ASSETS) <= set(bodies)
        assert max(bodies.values()) < 12

    def test_the_instance_shows_no_welcome_and_sends_no_telemetry(self):
        import yaml

        config = yaml.safe_load((ROOT / "dagster.yaml").read_text())
        assert json.dumps([config["telemetry"], config["nux"]]) == '[{"enabled": false}, {"enabled": false}]'
