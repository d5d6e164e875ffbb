"""The command as `python -m dicom_etl.cli`."""

from __future__ import annotations

from dicom_etl.cli.app import main

if __name__ == "__main__":
    main()
