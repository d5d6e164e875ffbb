"""The command as `python -m dicom_etl.cli`."""

from __future__ import annotations

from dicom_etl.__main__ import main

if __name__ == "__main__":
    main()
