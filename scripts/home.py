"""The folders of the Dagster instance and the demo: in the checkout, ignored by git."""

import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "demo"


def create_dagster_home() -> Path:
    """Create the folder of the Dagster instance, with a copy of `dagster.yaml`."""
    home = ROOT / ".dagster"
    home.mkdir(exist_ok=True)
    shutil.copyfile(ROOT / "dagster.yaml", home / "dagster.yaml")
    return home
