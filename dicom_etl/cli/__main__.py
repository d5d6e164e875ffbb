"""What `python -m dicom_etl.cli` runs."""

from __future__ import annotations

from dicom_etl.cli.root import main

if __name__ == "__main__":
    main()
