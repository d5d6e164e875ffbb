"""`dicom-etl example`: two small datasets to try the command with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dicom_etl.examples import write_examples
from dicom_etl.settings import SettingsError


def example(
    directory: Annotated[Path, typer.Argument(help="where to write")],
    force: Annotated[bool, typer.Option("--force", help="write over an example tree that was changed")] = False,
) -> None:
    """Write two small example datasets and their settings file."""
    try:
        tree = write_examples(directory, force=force)
    except FileExistsError as error:
        raise SettingsError(str(error)) from None
    print(f"wrote {' and '.join(tree.datasets)} and {tree.settings_file}")
    print(f"next:  cd {tree.directory} && dicom-etl run")
