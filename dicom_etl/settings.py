"""The settings: a TOML file, then environment variables, which override it, then options of the command.

Secrets are not settings: `FhirSettings.secret` and `Settings.resource_ids` read them when they are needed, from the
environment or from a file that a setting names, so that no dump of the settings can contain one.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import tomllib
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError as UnreadableVariableError

from dicom_etl.errors import UserError
from dicom_etl.identity.ids import ResourceIds
from dicom_etl.renames import SETTINGS, describe_rename

DEFAULT_FILE = "dicom-etl.toml"
URI = r"[A-Za-z][A-Za-z0-9+.-]*:\S+"  # the system of a FHIR identifier must be absolute


class SecretSource(NamedTuple):
    """The source of a secret: an environment variable, or a file that a setting names."""

    variable: str
    setting: str

    @property
    def description(self) -> str:
        """Both, for a message."""
        return f"{self.variable}, or the file that fhir.{self.setting} names"


SECRETS = {
    "token": SecretSource("DICOM_ETL_FHIR_TOKEN", "token_file"),
    "password": SecretSource("DICOM_ETL_FHIR_PASSWORD", "password_file"),
    "client_secret": SecretSource("DICOM_ETL_FHIR_CLIENT_SECRET", "client_secret_file"),
    "api_key": SecretSource("DICOM_ETL_FHIR_API_KEY", "api_key_file"),
}
ID_KEY_VARIABLE = "DICOM_ETL_ID_KEY"
NEW_ID_KEY = "openssl rand -hex 32"  # the command that makes a key
_ID_KEY_BYTES = 32  # minimum: the length of the digests of HMAC-SHA-256 (RFC 2104, section 3)
_FHIR_FILES = (*(source.setting for source in SECRETS.values()), "ca_file")
_HEADER_NAME = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"  # a token of RFC 9110, 5.6.2


class SettingsError(UserError):
    """A setting is missing or wrong; the text says which, and how to fix it."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DatasetSettings(_Strict):
    """One dataset: where it is, and what its headers do not contain."""

    root: str = Field(description="folder of the dataset (kind `tree`), or CSV file that lists its files (kind `list`)")
    kind: Literal["tree", "list"] = Field(
        "tree", description="`tree`: a folder, `list`: a CSV file with one DICOM file per line"
    )
    time_zone: str | None = Field(None, description="IANA time zone of its dates, for headers without UTC offset")
    assigning_authority: str | None = Field(
        None, description="URI of the authority that assigned its PatientIDs: the `system` of the FHIR identifiers"
    )
    endpoint: str | None = Field(
        None, description="base URL of DICOMweb (WADO-RS), for the Endpoint resource; default: the folder"
    )
    roles: tuple[Literal["primary", "derivative", "source"], ...] = Field(
        ("primary",), description="which SDS folders are crawled"
    )

    @field_validator("time_zone")
    @classmethod
    def _zone(cls, zone: str | None) -> str | None:
        return _check_zone(zone)

    @field_validator("assigning_authority")
    @classmethod
    def _authority(cls, uri: str | None) -> str | None:
        return _check_uri(uri)


class FhirSettings(_Strict):
    """The FHIR server, and how resources are built for it."""

    url: str | None = Field(
        None, description="base URL of the FHIR server; without one, the NDJSON files in the lake are the result"
    )
    version: Literal["R4", "R5"] = Field("R4", description="FHIR version of the resources")
    strict: bool = Field(
        False,
        description="true: a value that FHIR cannot represent puts its study on hold; false: only the value is omitted",
    )
    chest_code: Literal["816094009", "43799004"] = Field(
        "816094009", description="SNOMED CT code of CHEST and THORAX; 43799004 is the code of the German MII profiles"
    )
    client_assigned_ids: Literal["auto", "yes", "no"] = Field(
        "auto",
        description="whether the client assigns the ids of new resources (`yes`) or the server (`no`); `auto`: the "
        "client, unless the CapabilityStatement of the server excludes it",
    )
    existing_study: Literal["hold", "merge", "duplicate"] = Field(
        "hold",
        description="if another client has uploaded a study with the same StudyInstanceUID: `hold` the study of this "
        "lake, `merge` its series and instances into the existing study, or `duplicate` the study",
    )
    max_concurrent_requests: int = Field(4, ge=1, le=16, description="most requests at the same time")
    max_bundle_entries: int = Field(25, ge=1, le=500, description="most resources in a transaction bundle")
    max_bundle_bytes: int = Field(4_000_000, ge=10_000, description="approximate size of a transaction bundle in bytes")
    # a PUT of a study of 100 instances takes HAPI a tenth less time than its share of a transaction, and less memory
    single_request_bytes: int = Field(
        16_000, ge=0, description="a resource of more bytes is sent in a single request, not in a transaction bundle"
    )
    retry_seconds: float = Field(600, ge=0, description="total time for the retries of one request")
    # a small change to a study of 50,000 instances takes HAPI 42 s on two cores; another server may take ten times that
    timeout_seconds: float = Field(
        600, gt=0, description="timeout of one attempt of one request, including the response"
    )
    auth: Literal["none", "bearer", "basic", "oauth2", "api-key"] | None = Field(
        None,
        description="authentication method: `none`, `bearer`, `basic`, `oauth2` or `api-key`; default: `bearer` if "
        "there is a token, `basic` if the URL contains a username, otherwise `none`",
    )
    token_file: str | None = Field(None, description="auth `bearer`: file that contains the token")
    username: str | None = Field(None, description="auth `basic`: username")
    password_file: str | None = Field(None, description="auth `basic`: file that contains the password")
    token_url: str | None = Field(None, description="auth `oauth2`: token endpoint (client credentials grant)")
    client_id: str | None = Field(None, description="auth `oauth2`: client id")
    client_secret_file: str | None = Field(None, description="auth `oauth2`: file that contains the client secret")
    scope: str | None = Field(None, description="auth `oauth2`: scopes to request, separated by spaces")
    api_key_header: str = Field("X-API-Key", description="auth `api-key`: name of the HTTP header of the key")
    api_key_file: str | None = Field(None, description="auth `api-key`: file that contains the key")
    ca_file: str | None = Field(
        None, description="PEM file of certificate authorities to trust in addition to those of the system"
    )

    @property
    def client_assigned(self) -> bool | None:
        """Whether the client assigns the ids of resources; None: as the CapabilityStatement of the server allows."""
        return None if self.client_assigned_ids == "auto" else self.client_assigned_ids == "yes"

    @field_validator("url", "token_url")
    @classmethod
    def _address(cls, url: str | None) -> str | None:
        return _check_url(url)

    @field_validator("token_url")
    @classmethod
    def _no_login(cls, url: str | None) -> str | None:
        if url is not None and "@" in urlsplit(url).netloc:
            raise ValueError("contains a username: set fhir.client_id and the client secret instead")
        return url

    @field_validator("api_key_header")
    @classmethod
    def _header(cls, name: str) -> str:
        if not re.fullmatch(_HEADER_NAME, name):
            raise ValueError("is not a valid name of an HTTP header")
        return name

    def secret(self, name: str) -> str | None:
        """Read a secret of `SECRETS` from its environment variable or its file; None if there is neither.

        Raises:
            SettingsError: its file cannot be used.
        """
        variable, setting = SECRETS[name]
        if value := os.environ.get(variable, "").strip():
            return _require_one_line(value, variable)
        file = getattr(self, setting)
        if file is None:
            return None
        source = f"fhir.{setting} {file}"
        try:
            value = Path(file).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise SettingsError(f"{source} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise SettingsError(f"{source} is not a text file") from None
        if not value:
            raise SettingsError(f"{source} is empty")
        return _require_one_line(value, source)


def _require_one_line(secret: str, source: str) -> str:
    if not secret.isprintable():
        raise SettingsError(f"{source} contains a line break or another control character")
    return secret


class Settings(BaseSettings):
    """All settings. Paths are absolute once loaded."""

    model_config = SettingsConfigDict(env_prefix="DICOM_ETL_", env_nested_delimiter="__", extra="forbid", frozen=True)

    namespace: str = Field(
        "https://dicom-etl.local", description="URI that is the namespace of the ids and identifiers of this site"
    )
    id_key_file: str | None = Field(
        None,
        description="file that contains the secret key of resource ids; the environment variable `DICOM_ETL_ID_KEY` "
        "takes precedence; default: a key derived from `namespace`, with which ids can be guessed",
    )
    lake: str = Field("lake", description="folder or URL of the lake")
    ledger_url: SecretStr | None = Field(
        None,
        description="database of the upload ledger: `postgresql://user@host/name`, which several lakes and machines "
        "can share, or `sqlite:////path` of a file on a local disk; default: `ledger.sqlite` in the lake",
    )
    time_zone: str | None = Field(None, description="IANA time zone of datasets without one, such as Europe/Berlin")
    crosswalk: str | None = Field(
        None, description="CSV file that gives subjects their identifiers; columns: dataset, subject, system, value"
    )
    corrections: str | None = Field(
        None,
        description="CSV file that overrides header values; columns: dataset, subject, sample, study, series, tag, "
        "value, reason",
    )
    watch_folders: tuple[str, ...] = Field(
        (), description="folders that are watched for datasets: every subfolder is one"
    )
    engine: Literal["serial", "processes", "dask"] = Field(
        "processes",
        description="how units are processed: `serial`, in `processes` of this machine, or on a `dask` cluster",
    )
    scheduler: str | None = Field(
        None,
        description="engine `dask`: address of the scheduler (`tcp://host:8786`); default: a cluster on this machine",
    )
    workers: int = Field(
        default_factory=lambda: os.cpu_count() or 1, ge=1, description="number of processes; default: one per core"
    )
    lock_wait_seconds: float = Field(3600, ge=0, description="longest time to wait for another run of the same dataset")
    # names of the SPARC tutorial; not valid URNs (RFC 8141 allows no underscore there), hence settings
    sds_dataset_system: str = Field("urn:sparc_dataset:uid", description="`system` of the identifier of an SDS dataset")
    sds_study_system: str = Field(
        "urn:sparc_study:uid", description="`system` of the identifier of an SDS subject in its study"
    )
    staff_names: bool = Field(False, description="whether FHIR resources contain names of staff")
    contact_details: bool = Field(
        False, description="whether FHIR resources contain addresses and telephone numbers of patients"
    )
    reference_date: str | None = Field(None, description="date (YYYY-MM-DD) that rules use as today")
    fhir: FhirSettings = FhirSettings()
    datasets: dict[str, DatasetSettings] = Field(default_factory=dict)

    @field_validator("time_zone")
    @classmethod
    def _zone(cls, zone: str | None) -> str | None:
        return _check_zone(zone)

    @field_validator("namespace", "sds_dataset_system", "sds_study_system")
    @classmethod
    def _systems(cls, uri: str) -> str | None:
        return _check_uri(uri)

    @field_validator("reference_date")
    @classmethod
    def _day(cls, day: str | None) -> str | None:
        return None if day is None else datetime.date.fromisoformat(day).isoformat()

    @property
    def database(self) -> str | None:
        """The URL of the ledger database, with its password."""
        return self.ledger_url.get_secret_value() if self.ledger_url else None

    def resource_ids(self) -> ResourceIds:
        """The resource ids of `namespace`, with the configured key or one that is derived from the namespace.

        Raises:
            SettingsError: the key is too short, or its file cannot be read.
        """
        return ResourceIds.from_key(self.namespace, _id_key(self.id_key_file))

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003  (pydantic passes all five by name)
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment overrides the file, whose content is passed to the constructor."""
        return env_settings, init_settings


def _id_key(file: str | None) -> bytes | None:
    """The key of resource ids, from the environment or a file; None if there is neither."""
    if key := os.fsencode(os.environ.get(ID_KEY_VARIABLE, "")).strip():
        source = ID_KEY_VARIABLE
    elif file is None:
        return None
    else:
        source = f"id_key_file {file}"
        try:
            key = Path(file).read_bytes().strip()
        except OSError as error:
            raise SettingsError(f"{source} cannot be read: {error.strerror}") from None
    if len(key) < _ID_KEY_BYTES:
        raise SettingsError(f"{source} contains a key of less than {_ID_KEY_BYTES} bytes: make one with `{NEW_ID_KEY}`")
    return key


def _check_url(url: str | None) -> str | None:
    """Check a URL; the message does not repeat it, since it may contain a password."""
    if not url:
        return None
    try:
        parts = urlsplit(url)
        is_valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        is_valid = False
    if not is_valid:
        raise ValueError("is not a URL such as https://fhir.example.org/fhir")
    return url


def _check_zone(zone: str | None) -> str | None:
    if zone is not None:
        try:
            ZoneInfo(zone)
        except (KeyError, ValueError, OSError):
            raise ValueError(f"{zone!r} is not an IANA time zone such as Europe/Berlin") from None
    return zone


def _check_uri(uri: str | None) -> str | None:
    if uri is not None and not re.fullmatch(URI, uri):
        raise ValueError(f"{uri!r} is not a URI such as https://hospital.example or urn:oid:1.2.3")
    return uri


class _Overrides(Settings):
    """Settings from constructor arguments only, to check those that take precedence over the environment."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


def load_settings(file: Path | None = None, **overrides: Any) -> Settings:
    """Load the settings from a file, the environment and `overrides`.

    Args:
        file: the TOML file; relative paths in it are relative to its folder. Default: the file that the environment
            variable DICOM_ETL_SETTINGS names, otherwise dicom-etl.toml in the current folder, if it exists.
        overrides: values that take precedence over everything (of the command line); None is ignored. Nested ones as
            `fhir={"url": ...}`.

    Raises:
        SettingsError: one sentence that names the setting and what is wrong.
    """
    _check_variables()
    file = file or _find_default_file()
    content = _read_toml(file) if file else {}
    folder = file.resolve().parent if file else Path.cwd()
    try:
        settings = Settings(**content)
        given = {key: value for key, value in overrides.items() if value is not None}
        if nested := given.pop("fhir", None):
            given["fhir"] = settings.fhir.model_dump() | {k: v for k, v in nested.items() if v is not None}
        checked = _Overrides(**given)  # since model_copy does not validate
        merged = settings.model_copy(update={name: getattr(checked, name) for name in given})
    except UnreadableVariableError as error:
        raise SettingsError(f"environment variables: {error}: lists and tables are written as JSON") from None
    except ValidationError as error:
        raise SettingsError(_describe_error(error, file)) from None
    return _resolve_paths(merged, folder, is_lake_overridden="lake" in given)


def _check_variables() -> None:
    """Refuse environment variables that look like a setting and would be ignored without a message."""
    for old in SETTINGS:
        if _variable(old) in os.environ:
            names = {_variable(name): _variable(new) for name, new in SETTINGS.items()}
            raise SettingsError(describe_rename(names, _variable(old), "environment variable") or "")
    for name in FhirSettings.model_fields:
        variable, setting = f"DICOM_ETL_FHIR_{name.upper()}", _variable(f"fhir.{name}")
        if variable in os.environ:
            raise SettingsError(
                f"environment variable {variable} is not a setting: use {setting}, with two underscores"
            )


def _variable(setting: str) -> str:
    """The environment variable of a setting: `DICOM_ETL_FHIR__URL` of `fhir.url`."""
    return f"DICOM_ETL_{setting.upper().replace('.', '__')}"


def _find_default_file() -> Path | None:
    if path := os.environ.get("DICOM_ETL_SETTINGS"):
        return Path(path)
    file = Path(DEFAULT_FILE)
    return file if file.is_file() else None


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"the settings file {file} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"the settings file {file} is not valid TOML: {error}") from None


def _describe_error(error: ValidationError, file: Path | None) -> str:
    """The first error, as a sentence."""
    first = error.errors()[0]
    setting = ".".join(str(part) for part in first["loc"])
    source = f" in {file} (or an environment variable or option)" if file else " (environment variable or option)"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        if renamed := describe_rename(SETTINGS, setting, "setting"):
            return f"{renamed}: rename it in {file}" if file else renamed
        message = "there is no such setting; `dicom-etl doctor --settings-help` lists all of them"
    return f"setting {setting}{source}: {message}"


def _resolve_paths(settings: Settings, folder: Path, *, is_lake_overridden: bool) -> Settings:
    """Make paths absolute: those of the file are relative to its folder, an option `--lake` to the current folder."""

    def resolve(path: str, base: Path) -> str:
        return path if "://" in path else str((base / Path(path).expanduser()).resolve())

    datasets = {
        name: dataset.model_copy(update={"root": resolve(dataset.root, folder)})
        for name, dataset in settings.datasets.items()
    }
    fhir = settings.fhir
    files = {name: resolve(file, folder) for name in _FHIR_FILES if (file := getattr(fhir, name))}
    return settings.model_copy(
        update={
            "lake": resolve(settings.lake, Path.cwd() if is_lake_overridden else folder),
            "id_key_file": resolve(settings.id_key_file, folder) if settings.id_key_file else None,
            "crosswalk": resolve(settings.crosswalk, folder) if settings.crosswalk else None,
            "corrections": resolve(settings.corrections, folder) if settings.corrections else None,
            "watch_folders": tuple(resolve(path, folder) for path in settings.watch_folders),
            "datasets": datasets,
            "fhir": fhir.model_copy(update=files),
        }
    )


def describe_settings() -> list[tuple[str, str, str]]:
    """The name, default (as TOML) and meaning of each setting."""
    nested: dict[str, tuple[str, type[BaseModel]]] = {
        "fhir": ("fhir", FhirSettings),
        "datasets": ("datasets.NAME", DatasetSettings),
    }
    rows = []
    for name, field in Settings.model_fields.items():
        if name not in nested:
            rows.append((name, _default(field), field.description or ""))
        else:
            prefix, model = nested[name]
            rows += [(f"{prefix}.{n}", _default(f), f.description or "") for n, f in model.model_fields.items()]
    return rows


def _default(field: FieldInfo) -> str:
    """A default as in the settings file; the description of a setting states a computed one."""
    if field.is_required() or field.default_factory is not None or field.default is None:
        return ""
    return json.dumps(field.default)
