"""Status, explain, doctor, example, help and the entry point: what they show, and their exit codes."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from dicom_etl.cli import app


class TestStatusAndExplain:
    def test_explain_of_an_unknown_subject_names_those_that_exist(self, run_command, small, tmp_path):
        run_command("run", small, "--lake", tmp_path / "lake")
        code, _, err = run_command("explain", "ds", "sub-9", "--lake", tmp_path / "lake")
        assert code == 2
        assert "sub-1, sub-2" in err

    def test_status_without_a_lake_is_one_sentence(self, run_command, tmp_path):
        code, _, err = run_command("status", "--lake", tmp_path / "none")
        assert code == 2
        assert "there is no lake" in err
        assert not (tmp_path / "none").exists()


class TestDoctor:
    def test_what_is_wrong_fails_a_check(self, run_command, small, tmp_path):
        (tmp_path / "s.toml").write_text(
            f"lake = 'l'\ncorrections = 'none.csv'\n[datasets.a]\nroot = '{small}'\n[datasets.b]\nroot = 'nowhere'\n"
        )
        code, out, _ = run_command(
            "doctor", "--settings", tmp_path / "s.toml", "--fhir-url", "http://127.0.0.1:9/fhir", "--json"
        )
        checks = {check["check"]: check["ok"] for check in json.loads(out)}
        assert code == 1
        assert checks["dataset a"]
        assert not checks["dataset b"]
        assert not checks["FHIR server"]
        assert not checks["corrections"]
        assert checks["lake"]

    def test_the_lines_of_the_corrections_file_are_counted_and_checked(self, run_command, tmp_path):
        (tmp_path / "s.toml").write_text("lake = 'l'\ncorrections = 'c.csv'\n")
        file = tmp_path / "c.csv"

        def check():
            code, out, _ = run_command("doctor", "--settings", tmp_path / "s.toml", "--json")
            return code, *(row for row in json.loads(out) if row["check"] == "corrections")

        file.write_text("dataset,tag,value\nds,Modality,MR\n")
        assert check() == (0, {"check": "corrections", "status": "ok", "result": f"{file}: 1 line", "ok": True})
        file.write_text("dataset,tag,value\nds,Rows,7\n")
        code, checked = check()
        assert (code, checked["status"], checked["ok"]) == (1, "wrong", False)
        assert "Rows cannot be corrected" in checked["result"]
        file.unlink()
        assert check()[0] == 1

    def test_a_warning_is_in_the_first_column(self, run_command, tmp_path):
        code, out, _ = run_command("doctor", "--lake", tmp_path / "lake")

        statuses = [line.split()[1:5] for line in out.splitlines() if "│" in line]
        assert code == 0
        assert ["warn", "│", "resource", "ids"] in statuses
        assert ["ok", "│", "corrections", "│"] in statuses

    def test_the_settings_are_listed_as_json(self, run_command):
        code, out, err = run_command("doctor", "--settings-help", "--json")

        listed = {row["setting"]: row for row in json.loads(out)}
        assert (code, err) == (0, "")
        assert listed["fhir.max_concurrent_requests"]["default"] == "4"
        assert listed["datasets.NAME.root"]["meaning"]

    def test_ids_that_can_be_guessed_and_the_key_of_the_lake_are_checked(
        self, run_command, small, tmp_path, monkeypatch
    ):
        file = tmp_path / "id-key"
        (tmp_path / "s.toml").write_text("lake = 'lake'\nid_key_file = 'id-key'\n")

        def checks(*arguments):
            code, out, _ = run_command("doctor", "--json", *arguments)
            return code, {check["check"]: (check["status"], check["result"]) for check in json.loads(out)}

        code, checked = checks("--lake", tmp_path / "lake")
        assert (code, checked["resource ids"][0]) == (0, "warn")
        assert checked["resource ids"][1].startswith("the key is derived from `namespace`, so that anyone who knows")
        assert "`openssl rand -hex 32`" in checked["resource ids"][1]
        run_command("run", small, "--lake", tmp_path / "lake")

        code, checked = checks("--settings", tmp_path / "s.toml")
        assert (code, checked["resource ids"]) == (
            1,
            ("wrong", f"id_key_file {file} cannot be read: No such file or directory"),
        )
        file.write_bytes(b"k" * 32)
        file.chmod(0o640)
        code, checked = checks("--settings", tmp_path / "s.toml")
        assert checked["resource ids"] == (
            "ok",
            "key 82faad1c93751e3c (fingerprint); "
            "all lakes of the namespace https://dicom-etl.local must share this key",
        )
        assert (code, checked["lake"][0]) == (1, "wrong")
        keys = "the key 577b5d77c4253d5d, not with the configured key 82faad1c93751e3c"
        assert f"were made with {keys}" in checked["lake"][1]
        assert "secrets" not in checked
        file.chmod(0o644)
        assert checks("--settings", tmp_path / "s.toml")[1]["secrets"] == (
            "warn",
            f"id_key_file {file} can be read by everybody: chmod o-r",
        )


def test_the_example_can_be_run_in_its_folder(run_command, tmp_path, monkeypatch):
    assert run_command("example", tmp_path / "demo")[0] == 0
    monkeypatch.chdir(tmp_path / "demo")
    code, out, _ = run_command("run", "--json")
    done = json.loads(out)
    assert code == 0
    assert {name: by["extract"]["rows"] for name, by in done["datasets"].items()} == {"breast": 80, "heart": 47}


class TestHelp:
    def test_help_lists_every_command(self):
        runner = CliRunner()
        text = runner.invoke(app, ["--help"]).output
        for command in "run audit crawl extract build upload measure report status explain".split():
            assert command in text
            help_text = runner.invoke(app, [command, "--help"])
            assert help_text.exit_code == 0
            assert "--lake" in help_text.output

    def test_the_package_is_the_command(self):
        done = subprocess.run(
            [sys.executable, "-m", "dicom_etl", "--help"], capture_output=True, text=True, check=False
        )

        assert done.returncode == 0
        assert "upload" in done.stdout


class TestEntryPoint:
    @pytest.mark.parametrize("how", ["raise KeyboardInterrupt", "raise SystemExit(130)"])  # typer makes this of it
    def test_ctrl_c_ends_with_a_sentence_and_130(self, how):
        code = (
            "import dicom_etl.cli as cli, dicom_etl.__main__ as entry\n"
            f"def main(): {how}\ncli.main = main\nentry.main()"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

        assert done.returncode == 130
        assert done.stderr == "dicom-etl: stopped; finished work is kept, and the next run continues from there\n"

    def test_the_entry_point_is_light(self):
        heavy = {"typer", "pydicom", "pyarrow", "rich"}
        code = f"import sys, dicom_etl.__main__; print(sorted({heavy} & sys.modules.keys()))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

        assert done.stdout == "[]\n"
