"""The example datasets, crawled, extracted and built, for the tests of the stages after that."""

from pathlib import Path

from dicom_etl.engine import Engine
from dicom_etl.examples import write_examples
from dicom_etl.lake.tables import Lake
from dicom_etl.settings import Settings, load_settings
from dicom_etl.sources import open_source
from dicom_etl.stages.build import build
from dicom_etl.stages.crawl import crawl
from dicom_etl.stages.extract import extract


def example_lake(folder: Path) -> tuple[Lake, Settings]:
    """A lake in `folder` that is ready to be measured."""
    tree = write_examples(folder)
    settings = load_settings(tree.settings_file)
    lake = Lake(settings.lake).open()
    for dataset in tree.datasets:
        prepare(dataset, lake, settings)
    return lake, settings


def prepare(dataset: str, lake: Lake, settings: Settings) -> None:
    """Bring the tables of a dataset up to its files."""
    source = open_source(dataset, settings.datasets[dataset])
    crawl(source, lake)
    extract(source, lake, Engine())
    build(source, lake, settings, settings.datasets[dataset], Engine())
