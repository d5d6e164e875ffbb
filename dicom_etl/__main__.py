"""`python -m dicom_etl`: the command, where its script is not on the PATH."""

from dicom_etl.cli import main

if __name__ == "__main__":
    main()
