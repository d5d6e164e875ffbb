"""Dependencies point one way: dicom_etl <- resources <- assets <- definitions.py; and inside dicom_etl, upwards."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LEAVES = {"errors", "version", "renames"}  # import nothing of dicom_etl; every package may import them
TOP = {"stages", "pipeline", "convert", "cli", "__main__", "__init__"}  # bind several packages together

# package of dicom_etl -> packages and modules of dicom_etl that it may import
ALLOWED = {
    "identity": {"settings", "csv_files"},
    "headers": {"identity"},
    "lake": {"headers", "identity"},
    "findings": {"lake"},
    "settings": {"identity"},  # `identity.ids`, a leaf: the key of ids is configured
    "csv_files": {"settings"},
    "engine": set(),
    "sources": {"findings", "settings", "lake"},
    # settings for `Context.from_settings` and its error: the mapping itself takes a Context
    "fhir": {"findings", "headers", "identity", "settings", "csv_files"},
    "extraction": {"engine", "lake", "headers", "findings", "identity", "sources"},
    "construction": {"engine", "lake", "fhir", "findings", "identity", "headers", "settings"},
    "fhir_client": {"identity"},
    "fhir_connection": {"fhir_client", "settings"},
    "upload": {"fhir_client", "findings", "lake", "identity"},
    "withdrawal": {
        "construction",
        "extraction",
        "fhir",
        "fhir_client",
        "fhir_connection",
        "findings",
        "identity",
        "lake",
        "settings",
        "sources",
        "upload",
    },
    "quality": {"findings", "headers", "identity", "lake", "fhir", "settings"},
    "inspection": {
        "fhir",
        "fhir_client",
        "fhir_connection",
        "identity",
        "lake",
        "pipeline",
        "settings",
        "sources",
        "upload",
        "withdrawal",
    },
    "notebook": {"inspection", "lake"},
    "examples": set(),
}


def imported(file: Path) -> set[str]:
    """The modules that a file imports, at any level."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def files(path: str) -> list[Path]:
    """The Python files of a folder, or the file."""
    location = ROOT / path
    return [location] if location.is_file() else sorted(location.rglob("*.py"))


def imported_packages(package: str) -> set[str]:
    """The packages and modules of dicom_etl that a package or module of it imports."""
    checked = files(f"dicom_etl/{package}" if (ROOT / "dicom_etl" / package).is_dir() else f"dicom_etl/{package}.py")
    names = {name.split(".")[1] for file in checked for name in imported(file) if name.startswith("dicom_etl.")}
    return names - {package}


@pytest.mark.parametrize(
    ("path", "forbidden"),
    [
        ("dicom_etl", ("dagster", "resources", "assets", "definitions", "tests", "scripts", "benchmarks")),
        ("resources", ("assets", "definitions", "tests", "scripts", "benchmarks")),
        ("assets", ("definitions", "tests", "scripts", "benchmarks")),
        ("definitions.py", ("tests", "scripts", "benchmarks")),
    ],
)
def test_dependencies_point_one_way(path, forbidden):
    checked = files(path)
    assert checked
    wrong = [(f.name, name) for f in checked for name in imported(f) if name.split(".")[0] in forbidden]
    assert wrong == []


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_a_package_imports_only_packages_below_it(package):
    assert imported_packages(package) - LEAVES <= ALLOWED[package]


@pytest.mark.parametrize("module", sorted(LEAVES))
def test_a_leaf_imports_nothing_of_the_package(module):
    assert imported_packages(module) == set()


@pytest.mark.parametrize("package", ["stages", "pipeline", "convert"])
def test_nothing_below_the_command_imports_it(package):
    assert not imported_packages(package) & {"cli", "inspection", "notebook", "__main__"}


def test_every_package_has_a_rule():
    packages = {
        path.stem for path in (ROOT / "dicom_etl").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert packages == set(ALLOWED) | LEAVES | TOP


@pytest.mark.parametrize("module", ["transport", "auth", "session", "retry", "concurrency", "urls"])
def test_modules_for_other_http_clients_import_no_fhir(module):
    shared = {f"dicom_etl.fhir_client.{name}" for name in ("errors", "transport", "auth", "session", "urls")}
    used = {name for name in imported(ROOT / f"dicom_etl/fhir_client/{module}.py") if name.startswith("dicom_etl.")}
    assert {name.rpartition(".")[0] for name in used} <= shared
    assert not any(name.startswith("fhirpy") for name in imported(ROOT / f"dicom_etl/fhir_client/{module}.py"))


def test_the_package_and_its_command_need_no_dagster():
    code = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'dagster':\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "import pkgutil, importlib, dicom_etl\n"
        "names = [m.name for m in pkgutil.walk_packages(dicom_etl.__path__, 'dicom_etl.')]\n"
        "for name in names: importlib.import_module(name)\n"
        "print(len(names), 'dagster' in sys.modules)\n"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    count, has_dagster = process.stdout.split()
    assert int(count) > 40
    assert has_dagster == "False"


@pytest.mark.parametrize("module", ["extraction.chunk_reader", "extraction.assembly", "construction.assembly"])
def test_a_worker_imports_only_what_it_needs(module):
    heavy = ("pandas", "duckdb", "aiohttp", "fhirpy", "fhir.resources", "openpyxl", "jinja2", "rich", "typer")
    code = f"import sys, dicom_etl.{module}; print([name for name in {heavy} if name in sys.modules])"
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "[]"
