"""`dicom-etl example`: two small datasets to try the command with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dicom_etl.errors import UserError
from dicom_etl.examples import write_examples


def example(
    directory: Annotated[Path, typer.Argument(help="folder to write the datasets to")],
    force: Annotated[bool, typer.Option("--force", help="overwrite example datasets that were changed")] = False,
) -> None:
    """Write two small example datasets and their settings file."""
    try:
        tree = write_examples(directory, force=force)
    except FileExistsError as error:
        raise UserError(str(error)) from None
    print(f"wrote {' and '.join(tree.datasets)} and {tree.settings_file}")
    print(f"next:  cd {tree.directory} && dicom-etl audit")
