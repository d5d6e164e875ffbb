"""`make dev`: the Dagster UI, sensor and schedule, with dicom-etl.toml of the checkout or else that of the demo."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from scripts.home import DEMO, create_dagster_home  # noqa: E402


def main() -> None:
    """Replace this process by `dagster dev`, with the Dagster instance of the demo."""
    os.environ.setdefault("DAGSTER_HOME", str(create_dagster_home()))
    if not (ROOT / "dicom-etl.toml").exists() and (DEMO / "dicom-etl.toml").exists():
        os.environ.setdefault("DICOM_ETL_SETTINGS", str(DEMO / "dicom-etl.toml"))
    print("the Dagster UI: http://127.0.0.1:3000 (stop it with Ctrl-C)", flush=True)
    command = [str(Path(sys.executable).with_name("dagster")), "dev", "-w", str(ROOT / "workspace.yaml"), *sys.argv[1:]]
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
