"""Makes docs/report.png, the picture in the README, from the breast example's report: `make demo` first.

Needs Chromium. Run it when the look of the report has changed.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REPORT = ROOT / "demo/lake/quality/breast/report.html"
FLAGS = "--headless --no-sandbox --disable-gpu --disable-background-networking --hide-scrollbars".split()


def main() -> int:
    """Draw the first screen of the report."""
    if not REPORT.is_file():
        print(f"{REPORT.relative_to(ROOT)} is not there: make demo first")
        return 1
    picture = f"--screenshot={ROOT / 'docs/report.png'}"
    subprocess.run(["chromium", *FLAGS, "--window-size=1200,1000", picture, REPORT.as_uri()], check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
