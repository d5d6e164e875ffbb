"""The settings: file, environment and command line, each overriding the one before; errors are one sentence."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from dicom_etl.identity.ids import ResourceIds
from dicom_etl.settings import SECRETS, DatasetSettings, FhirSettings, Settings, SettingsError, load_settings

FHIR_FILES = ("token_file", "password_file", "client_secret_file", "api_key_file", "ca_file")


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs in an empty folder and without settings in the environment."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name in [name for name in os.environ if name.upper().startswith("DICOM_ETL_")]:
        monkeypatch.delenv(name)


def written(tmp_path: Path, content: str) -> Path:
    """A settings file with this content."""
    path = tmp_path / "conf" / "my.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def refusal(file: Path | None = None, **overrides: Any) -> str:
    """The sentence with which settings are raised."""
    with pytest.raises(SettingsError) as raised:
        load_settings(file, **overrides)
    return str(raised.value)


class TestPrecedence:
    def test_without_a_file_there_are_defaults(self, tmp_path: Path) -> None:
        settings = load_settings()
        assert (settings.namespace, settings.lake) == ("https://dicom-etl.local", str(tmp_path / "here" / "lake"))
        assert (settings.engine, settings.staff_names, settings.time_zone) == ("processes", False, None)
        assert (settings.fhir.url, settings.datasets, settings.watch_folders, settings.crosswalk) == (
            None,
            {},
            (),
            None,
        )

    def test_the_file_overrides_the_defaults(self, tmp_path: Path) -> None:
        assert load_settings(written(tmp_path, "workers = 3")).workers == 3

    def test_the_environment_overrides_the_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DICOM_ETL_WORKERS", "5")
        assert load_settings(written(tmp_path, "workers = 3")).workers == 5

    def test_the_command_line_overrides_the_environment(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DICOM_ETL_WORKERS", "5")
        assert load_settings(written(tmp_path, "workers = 3"), workers=7).workers == 7

    def test_an_option_that_was_not_given_overrides_nothing(self, tmp_path: Path) -> None:
        assert load_settings(written(tmp_path, "workers = 3"), workers=None, fhir={"url": None}).workers == 3

    def test_a_nested_setting_comes_from_three_sources(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DICOM_ETL_FHIR__URL", "http://environment/fhir")
        monkeypatch.setenv("DICOM_ETL_FHIR__MAX_CONCURRENT_REQUESTS", "5")
        file = written(
            tmp_path, '[fhir]\nurl = "http://file/fhir"\nmax_concurrent_requests = 4\nmax_bundle_entries = 7\n'
        )
        fhir = load_settings(file, fhir={"url": "http://option/fhir"}).fhir
        assert (fhir.url, fhir.max_concurrent_requests, fhir.max_bundle_entries) == ("http://option/fhir", 5, 7)

    def test_the_file_of_the_current_folder_is_read(self, tmp_path: Path) -> None:
        (tmp_path / "here" / "dicom-etl.toml").write_text("workers = 3")
        assert load_settings().workers == 3

    def test_the_file_named_by_the_environment_is_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "here" / "dicom-etl.toml").write_text("workers = 3")
        monkeypatch.setenv("DICOM_ETL_SETTINGS", str(written(tmp_path, "workers = 4")))
        assert load_settings().workers == 4

    def test_the_file_of_the_command_line_overrides_that_of_the_environment(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("DICOM_ETL_SETTINGS", str(tmp_path / "none.toml"))
        assert load_settings(written(tmp_path, "workers = 4")).workers == 4

    def test_datasets_are_registered_in_the_file(self, tmp_path: Path) -> None:
        file = written(
            tmp_path,
            '[datasets.breast]\nroot = "b"\ntime_zone = "Pacific/Auckland"\nassigning_authority = "urn:oid:1.2"\n'
            'roles = ["primary", "derivative"]\n[datasets."my list"]\nroot = "l.csv"\nkind = "list"\n',
        )
        assert load_settings(file).datasets == {
            "breast": DatasetSettings(
                root=str(tmp_path / "conf" / "b"),
                time_zone="Pacific/Auckland",
                assigning_authority="urn:oid:1.2",
                roles=("primary", "derivative"),
            ),
            "my list": DatasetSettings(root=str(tmp_path / "conf" / "l.csv"), kind="list"),
        }


class TestPaths:
    def test_paths_of_the_file_are_relative_to_the_file(self, tmp_path: Path) -> None:
        file = written(
            tmp_path,
            'lake = "lake"\nid_key_file = "key"\ncrosswalk = "../who.csv"\nwatch_folders = ["data", "/abs"]\n'
            '[datasets.ds]\nroot = "./ds"\n[fhir]\n' + "".join(f'{name} = "{name}"\n' for name in FHIR_FILES),
        )
        settings = load_settings(file)
        assert settings.lake == str(tmp_path / "conf" / "lake")
        assert settings.crosswalk == str(tmp_path / "who.csv")
        assert settings.id_key_file == str(tmp_path / "conf" / "key")
        assert settings.watch_folders == (str(tmp_path / "conf" / "data"), "/abs")
        assert settings.datasets["ds"].root == str(tmp_path / "conf" / "ds")
        for name in FHIR_FILES:
            assert getattr(settings.fhir, name) == str(tmp_path / "conf" / name)

    def test_the_default_lake_is_in_the_folder_of_the_file(self, tmp_path: Path) -> None:
        assert load_settings(written(tmp_path, "")).lake == str(tmp_path / "conf" / "lake")

    def test_the_lake_of_the_command_line_is_relative_to_the_current_folder(self, tmp_path: Path) -> None:
        assert load_settings(written(tmp_path, 'lake = "a"'), lake="b").lake == str(tmp_path / "here" / "b")

    def test_a_tilde_is_the_home_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        assert load_settings(written(tmp_path, 'lake = "~/lake"')).lake == str(tmp_path / "home" / "lake")

    def test_a_url_stays_as_it_is(self, tmp_path: Path) -> None:
        assert load_settings(written(tmp_path, 'lake = "s3://bucket/lake"')).lake == "s3://bucket/lake"


class TestErrors:
    def test_an_unknown_setting_is_one_sentence(self, tmp_path: Path) -> None:
        file = written(tmp_path, 'lkae = "x"\n')
        assert refusal(file) == (
            f"setting lkae in {file} (or an environment variable or option): "
            "there is no such setting; `dicom-etl doctor --settings-help` lists all of them"
        )

    def test_an_unknown_setting_of_a_dataset_has_its_full_name(self, tmp_path: Path) -> None:
        file = written(tmp_path, '[datasets.ds]\nroot = "x"\ntimezone = "UTC"\n')
        assert refusal(file).startswith(
            f"setting datasets.ds.timezone in {file} (or an environment variable or option): there is no"
        )

    @pytest.mark.parametrize(
        ("content", "place"),
        [
            ('time_zone = "Berlin"', "time_zone"),
            ('time_zone = "../etc/passwd"', "time_zone"),
            ('[datasets.ds]\nroot = "x"\ntime_zone = "Berlin"', "datasets.ds.time_zone"),
        ],
    )
    def test_an_unknown_time_zone_is_one_sentence(self, tmp_path: Path, content: str, place: str) -> None:
        message = refusal(written(tmp_path, content))
        assert message.startswith(f"setting {place} in ")
        assert message.endswith("is not an IANA time zone such as Europe/Berlin")
        assert "\n" not in message

    @pytest.mark.parametrize(
        ("content", "place"),
        [
            ('namespace = "our hospital"', "namespace"),
            ('sds_study_system = "studies"', "sds_study_system"),
            ('[datasets.ds]\nroot = "x"\nassigning_authority = "HIS"', "datasets.ds.assigning_authority"),
        ],
    )
    def test_a_namespace_that_is_not_a_uri_is_one_sentence(self, tmp_path: Path, content: str, place: str) -> None:
        message = refusal(written(tmp_path, content))
        assert message.startswith(f"setting {place} in ")
        assert message.endswith("is not a URI such as https://hospital.example or urn:oid:1.2.3")

    @pytest.mark.parametrize(
        "content",
        [
            "workers = 0",
            'engine = "threads"',
            "[fhir]\nmax_concurrent_requests = 99",
            '[fhir]\nversion = "R3"',
            'reference_date = "yesterday"',
            "[datasets.ds]\nkind = 'tree'",
            "lock_wait_seconds = -1",
        ],
    )
    def test_a_value_that_is_not_allowed_is_one_sentence(self, tmp_path: Path, content: str) -> None:
        message = refusal(written(tmp_path, content))
        assert message.startswith("setting ")
        assert "\n" not in message

    @pytest.mark.parametrize(
        ("overrides", "place"),
        [
            ({"workers": 0}, "workers"),
            ({"engine": "threads"}, "engine"),
            ({"time_zone": "Berlin"}, "time_zone"),
            ({"fhir": {"max_concurrent_requests": 0}}, "fhir.max_concurrent_requests"),
            ({"colour": "red"}, "colour"),
        ],
    )
    def test_a_value_of_the_command_line_is_checked_too(self, overrides: dict[str, Any], place: str) -> None:
        assert refusal(**overrides).startswith(f"setting {place} (environment variable or option): ")

    @pytest.mark.parametrize(("name", "value"), [("WORKERS", "many"), ("ENGINE", "threads")])
    def test_a_value_of_the_environment_is_checked_too(
        self, monkeypatch: pytest.MonkeyPatch, name: str, value: str
    ) -> None:
        monkeypatch.setenv(f"DICOM_ETL_{name}", value)
        assert refusal().startswith(f"setting {name.lower()} (environment variable or option): ")

    def test_a_list_in_the_environment_that_is_not_json_is_one_sentence(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DICOM_ETL_WATCH_FOLDERS", "/data")
        message = refusal()
        assert message.startswith("environment variables: ")
        assert "watch_folders" in message
        assert message.endswith("lists and tables are written as JSON")

    def test_a_missing_file_is_one_sentence(self, tmp_path: Path) -> None:
        file = tmp_path / "none.toml"
        assert refusal(file) == f"the settings file {file} cannot be read: No such file or directory"

    def test_a_file_that_is_not_toml_is_one_sentence(self, tmp_path: Path) -> None:
        file = written(tmp_path, "lake = lake\n")
        assert refusal(file).startswith(f"the settings file {file} is not valid TOML: ")

    def test_settings_cannot_be_changed_by_accident(self) -> None:
        with pytest.raises(ValueError, match="frozen"):
            load_settings().lake = "elsewhere"  # type: ignore[misc]


TOKEN = "s3cr3t-t0k3n"
every_secret = pytest.mark.parametrize("name", list(SECRETS))


def dumps_of(settings: Settings) -> list[str]:
    """Every way in which settings come to be shown."""
    return [repr(settings), str(settings), str(settings.model_dump()), settings.model_dump_json()]


class TestSecrets:
    @every_secret
    def test_the_environment_gives_a_secret_that_no_dump_contains(
        self, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        monkeypatch.setenv(f"DICOM_ETL_FHIR_{name.upper()}", f" {TOKEN}\n")
        settings = load_settings()
        assert settings.fhir.secret(name) == TOKEN
        assert [settings.fhir.secret(other) for other in SECRETS if other != name] == [None] * 3
        assert not any(TOKEN in dump for dump in dumps_of(settings))

    @every_secret
    def test_a_file_gives_a_secret_that_no_dump_contains(self, tmp_path: Path, name: str) -> None:
        (tmp_path / "conf").mkdir()
        (tmp_path / "conf" / "secret").write_text(f"{TOKEN}\n")
        settings = load_settings(written(tmp_path, f'[fhir]\n{name}_file = "secret"\n'))
        assert settings.fhir.secret(name) == TOKEN
        assert not any(TOKEN in dump for dump in dumps_of(settings))

    def test_the_environment_overrides_the_file_of_a_secret(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "token").write_text("other")
        monkeypatch.setenv("DICOM_ETL_FHIR_TOKEN", TOKEN)
        assert FhirSettings(token_file=str(tmp_path / "token")).secret("token") == TOKEN

    @every_secret
    def test_without_a_secret_there_is_none(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(f"DICOM_ETL_FHIR_{name.upper()}", "")
        assert load_settings().fhir.secret(name) is None

    @every_secret
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (None, "cannot be read: No such file or directory"),
            (b"\n", "is empty"),
            (b"\xff\xfe" + TOKEN.encode(), "is not a text file"),
            (TOKEN.encode() + b"\r\nX-Evil: 1", "contains a line break or another control character"),
        ],
    )
    def test_a_file_without_a_secret_is_one_sentence(
        self, tmp_path: Path, name: str, content: bytes | None, message: str
    ) -> None:
        file = tmp_path / "secret"
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(SettingsError) as raised:
            FhirSettings(**{f"{name}_file": str(file)}).secret(name)
        assert str(raised.value) == f"fhir.{name}_file {file} {message}"
        assert TOKEN not in str(raised.value)


KEY = "0f" * 32
SITE = "https://dicom-etl.local"


class TestIdKey:
    def test_without_a_key_it_is_derived_from_the_namespace(self) -> None:
        assert load_settings().resource_ids() == ResourceIds.from_key(SITE, None)
        assert Settings(namespace="https://a.example").resource_ids() == ResourceIds.from_key("https://a.example", None)

    @pytest.mark.parametrize("value", [KEY, f" {KEY}\n"])
    def test_the_environment_gives_a_key_that_no_dump_contains(
        self, monkeypatch: pytest.MonkeyPatch, value: str
    ) -> None:
        monkeypatch.setenv("DICOM_ETL_ID_KEY", value)
        settings = load_settings()
        assert settings.resource_ids() == ResourceIds.from_key(SITE, KEY.encode())
        assert not any(KEY in dump for dump in [*dumps_of(settings), repr(settings.resource_ids())])

    @pytest.mark.parametrize("key", [KEY.encode(), bytes(range(128, 160))], ids=["text", "bytes"])
    def test_a_file_gives_the_key_when_it_is_needed(self, tmp_path: Path, key: bytes) -> None:
        settings = load_settings(written(tmp_path, 'id_key_file = "key"'))
        (tmp_path / "conf" / "key").write_bytes(b"\n" + key + b" \r\n")
        assert settings.resource_ids() == ResourceIds.from_key(SITE, key)
        assert not any(key.decode("latin-1") in dump for dump in dumps_of(settings))

    def test_the_environment_overrides_the_file_of_the_key(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings = load_settings(written(tmp_path, 'id_key_file = "key"'))
        (tmp_path / "conf" / "key").write_text("1e" * 32)
        monkeypatch.setenv("DICOM_ETL_ID_KEY", KEY)
        assert settings.resource_ids() == ResourceIds.from_key(SITE, KEY.encode())
        monkeypatch.setenv("DICOM_ETL_ID_KEY", " ")
        assert settings.resource_ids() == ResourceIds.from_key(SITE, b"1e" * 32)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (None, "cannot be read: No such file or directory"),
            (b"", "contains a key of less than 32 bytes: make one with `openssl rand -hex 32`"),
            (
                b" " * 32 + b"x" * 31 + b"\n",
                "contains a key of less than 32 bytes: make one with `openssl rand -hex 32`",
            ),
        ],
    )
    def test_a_file_without_a_key_is_one_sentence(self, tmp_path: Path, content: bytes | None, message: str) -> None:
        file = tmp_path / "key"
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(SettingsError) as raised:
            Settings(id_key_file=str(file)).resource_ids()
        assert str(raised.value) == f"id_key_file {file} {message}"

    def test_a_short_key_in_the_environment_is_refused_and_not_repeated(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DICOM_ETL_ID_KEY", TOKEN)
        with pytest.raises(SettingsError) as raised:
            load_settings().resource_ids()
        assert str(raised.value) == (
            "DICOM_ETL_ID_KEY contains a key of less than 32 bytes: make one with `openssl rand -hex 32`"
        )

    def test_a_key_in_the_settings_file_is_refused_and_not_repeated(self, tmp_path: Path) -> None:
        assert KEY not in refusal(written(tmp_path, f'id_key = "{KEY}"'))


class TestAuthentication:
    def test_a_secret_of_two_lines_in_the_environment_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DICOM_ETL_FHIR_API_KEY", f"{TOKEN}\nX-Evil: 1")
        with pytest.raises(SettingsError, match="DICOM_ETL_FHIR_API_KEY contains a line break") as raised:
            load_settings().fhir.secret("api_key")
        assert TOKEN not in str(raised.value)

    @pytest.mark.parametrize(
        ("content", "place", "message"),
        [
            (f'url = "ftp://me:{TOKEN}@host/"', "url", "is not a URL such as https://fhir.example.org/fhir"),
            (f'url = "https://me:{TOKEN}@[host/"', "url", "is not a URL such as https://fhir.example.org/fhir"),
            ('url = "fhir.example.org"', "url", "is not a URL such as https://fhir.example.org/fhir"),
            ('url = "https://host:port/"', "url", "is not a URL such as https://fhir.example.org/fhir"),
            (
                f'token_url = "https://me:{TOKEN}@host/"',
                "token_url",
                "contains a username: set fhir.client_id and the client",
            ),
            ('api_key_header = "X Key"', "api_key_header", "is not a valid name of an HTTP header"),
            (
                'auth = "digest"',
                "auth",
                "Input should be 'none', 'bearer', 'basic', 'oauth2' or 'api-key'",
            ),
        ],
    )
    def test_an_invalid_authentication_setting_is_one_sentence(
        self, tmp_path: Path, content: str, place: str, message: str
    ) -> None:
        file = written(tmp_path, f"[fhir]\n{content}\n")
        sentence = refusal(file)
        assert sentence.startswith(f"setting fhir.{place} in {file} (or an environment variable or option): {message}")
        assert TOKEN not in sentence

    def test_a_token_in_the_settings_file_is_refused_and_not_repeated(self, tmp_path: Path) -> None:
        message = refusal(written(tmp_path, f'[fhir]\ntoken = "{TOKEN}"\n'))
        assert message.startswith("setting fhir.token in ")
        assert TOKEN not in message

    def test_settings_are_json(self, tmp_path: Path) -> None:
        file = written(tmp_path, '[datasets.ds]\nroot = "/x"\n')
        assert json.loads(load_settings(file).model_dump_json())["datasets"]["ds"]["root"] == "/x"
