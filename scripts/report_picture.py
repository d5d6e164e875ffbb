"""Writes docs/report.png, the picture in the README, from the report of the example dataset breast.

Needs Chromium, and `make demo` before. Run it when the layout of the report has changed.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REPORT = ROOT / "demo/lake/quality/breast/report.html"
FLAGS = "--headless --no-sandbox --disable-gpu --disable-background-networking --hide-scrollbars".split()


def main() -> int:
    """Take a screenshot of the top of the report."""
    if not REPORT.is_file():
        print(f"{REPORT.relative_to(ROOT)} does not exist: run make demo first")
        return 1
    picture = f"--screenshot={ROOT / 'docs/report.png'}"
    subprocess.run(["chromium", *FLAGS, "--window-size=1200,1000", picture, REPORT.as_uri()], check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
