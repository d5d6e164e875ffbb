"""Reads one file in a separate process with limited memory, and prints the result."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

from dicom_etl.headers.reference import read_header
from dicom_etl.headers.row import NoRowError


def main(path: Path) -> None:
    """Print `row`, or the kind of file and the code."""
    resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
    with path.open("rb") as file:
        try:
            read_header(file, path.name, path.stat().st_size)
        except NoRowError as why:
            print(why.kind, why.code)
        else:
            print("row")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
