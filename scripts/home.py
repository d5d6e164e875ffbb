"""Where demo and development keep the Dagster instance and the examples: inside the checkout, out of git."""

import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "demo"


def dagster_home() -> Path:
    """The folder of the Dagster instance, with the project's `dagster.yaml` in it."""
    home = ROOT / ".dagster"
    home.mkdir(exist_ok=True)
    shutil.copyfile(ROOT / "dagster.yaml", home / "dagster.yaml")
    return home
