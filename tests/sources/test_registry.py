"""The datasets: registered, watched, or named on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from dicom_etl.lake.tables import Lake
from dicom_etl.settings import DatasetSettings, Settings, SettingsError
from dicom_etl.sources import KINDS, SourceError
from dicom_etl.sources.registry import find_datasets, select_datasets
from tests.support.datasets import make_lake, make_tree


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return make_lake(tmp_path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name in ("breast", "heart", ".hidden"):
        (tmp_path / "data" / name).mkdir(parents=True)
    (tmp_path / "data" / "notes.txt").write_text("no dataset")
    return tmp_path / "data"


def roots(datasets: dict[str, DatasetSettings]) -> dict[str, str]:
    return {name: dataset.root for name, dataset in datasets.items()}


def test_every_kind_of_the_settings_is_a_source() -> None:
    assert set(get_args(DatasetSettings.model_fields["kind"].annotation)) == set(KINDS)


def test_every_folder_in_a_watched_folder_is_a_dataset(data: Path) -> None:
    datasets = find_datasets(Settings(watch_folders=(str(data),)))
    assert roots(datasets) == {"breast": str(data / "breast"), "heart": str(data / "heart")}


def test_a_watched_dataset_keeps_its_registered_settings(data: Path) -> None:
    settings = Settings(
        watch_folders=(str(data),),
        datasets={"heart": DatasetSettings(root=str(data / "heart"), time_zone="Europe/Berlin")},
    )
    assert find_datasets(settings)["heart"].time_zone == "Europe/Berlin"


def test_a_watched_folder_named_like_a_registered_dataset_is_refused(data: Path, tmp_path: Path) -> None:
    settings = Settings(watch_folders=(str(data),), datasets={"heart": DatasetSettings(root=str(tmp_path))})
    with pytest.raises(SettingsError, match="two datasets are named heart"):
        find_datasets(settings)


def test_two_watched_datasets_of_one_name_are_refused(data: Path, tmp_path: Path) -> None:
    (tmp_path / "more" / "heart").mkdir(parents=True)
    with pytest.raises(SettingsError, match="two datasets are named heart"):
        find_datasets(Settings(watch_folders=(str(data), str(tmp_path / "more"))))


def test_a_watched_folder_that_cannot_be_listed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="gone cannot be listed"):
        find_datasets(Settings(watch_folders=(str(tmp_path / "gone"),)))


def test_no_argument_selects_all_datasets(data: Path, lake: Lake) -> None:
    assert list(select_datasets(Settings(watch_folders=(str(data),)), lake, [])) == ["breast", "heart"]


def test_no_argument_and_no_dataset_is_refused(lake: Lake) -> None:
    with pytest.raises(SettingsError, match="no dataset is named and none is registered"):
        select_datasets(Settings(), lake, [])


def test_a_registered_name_selects_its_dataset(data: Path, lake: Lake) -> None:
    settings = Settings(datasets={"h": DatasetSettings(root=str(data / "heart"))})
    assert roots(select_datasets(settings, lake, ["h"])) == {"h": str(data / "heart")}


def test_a_path_is_named_after_its_folder(data: Path, lake: Lake) -> None:
    assert roots(select_datasets(Settings(), lake, [f"{data}/heart/"])) == {"heart": str(data / "heart")}


def test_a_path_can_have_a_name(data: Path, lake: Lake) -> None:
    assert roots(select_datasets(Settings(), lake, [f"cardiac={data}/heart"])) == {"cardiac": str(data / "heart")}


@pytest.mark.parametrize("folder", ["study=2/heart", "study=2", "a=b=c"])
def test_an_existing_path_may_contain_an_equals_sign(data: Path, lake: Lake, folder: str) -> None:
    (data / folder).mkdir(parents=True)
    chosen = select_datasets(Settings(), lake, [f"{data}/{folder}"])
    assert roots(chosen) == {folder.rpartition("/")[2]: str(data / folder)}


def test_a_path_with_an_equals_sign_can_have_a_name(data: Path, lake: Lake) -> None:
    (data / "study=2").mkdir()
    assert roots(select_datasets(Settings(), lake, [f"two={data}/study=2"])) == {"two": str(data / "study=2")}


def test_a_csv_file_is_a_file_list(data: Path, lake: Lake) -> None:
    (data / "mine.csv").write_text("path\n")
    assert select_datasets(Settings(), lake, [str(data / "mine.csv")])["mine"].kind == "list"


def test_two_roots_of_one_name_are_refused(data: Path, tmp_path: Path, lake: Lake) -> None:
    (tmp_path / "more" / "heart").mkdir(parents=True)
    with pytest.raises(SettingsError, match="two datasets are named heart"):
        select_datasets(Settings(), lake, [str(data / "heart"), str(tmp_path / "more" / "heart")])


def test_one_root_named_twice_is_one_dataset(data: Path, lake: Lake) -> None:
    assert len(select_datasets(Settings(), lake, [str(data / "heart"), f"heart={data / 'heart'}"])) == 1


def test_a_registered_name_for_another_folder_is_refused(data: Path, lake: Lake) -> None:
    settings = Settings(datasets={"heart": DatasetSettings(root=str(data / "heart"))})
    with pytest.raises(SettingsError, match="heart is registered with the root"):
        select_datasets(settings, lake, [f"heart={data / 'breast'}"])


def test_a_missing_path_is_refused_with_the_registered_names(data: Path, lake: Lake) -> None:
    settings = Settings(datasets={"h": DatasetSettings(root=str(data / "heart"))})
    with pytest.raises(SourceError, match="is neither a folder nor a registered dataset; registered: h"):
        select_datasets(settings, lake, [str(data / "lungs")])


def test_a_missing_path_with_a_name_is_refused(data: Path, lake: Lake) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        select_datasets(Settings(), lake, [f"lungs={data / 'lungs'}"])


def test_a_dataset_of_the_lake_from_another_folder_is_refused(data: Path, tmp_path: Path) -> None:
    tree = make_tree(tmp_path, "heart")
    tree.write("sub-1/1.dcm")
    tree.crawl()
    with pytest.raises(SettingsError, match="the lake has a dataset heart from another folder"):
        select_datasets(Settings(), tree.lake, [str(data / "heart")])


def test_a_dataset_that_moved_is_selected_with_its_name(data: Path, tmp_path: Path) -> None:
    tree = make_tree(tmp_path, "heart")
    tree.write("sub-1/1.dcm")
    tree.crawl()
    assert roots(select_datasets(Settings(), tree.lake, [f"heart={data / 'heart'}"])) == {"heart": str(data / "heart")}
