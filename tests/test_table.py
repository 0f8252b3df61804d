"""Parquet files as on the hub, in a folder, read by `datasets`."""

from pathlib import Path

import pytest
from data_files import COUNTS, check, cifar2, image, write_parquet
from PIL import Image

from launch import sources
from launch.errors import Refused

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")  # of datasets 5.2


def test_parquet_folder_as_on_the_hub(tmp_path):
    check(cifar2(write_parquet(tmp_path / "repository")))


def test_parquet_in_a_folder_with_brackets_and_links(tmp_path):
    place = write_parquet(tmp_path / "data [1]")
    (place / "data").rename(tmp_path / "elsewhere")
    (place / "data").symlink_to(tmp_path / "elsewhere")
    check(cifar2(place))


def write_table(folder: Path, split: str, names: list[str], size: int = 28) -> None:
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    rows = [{"image": Image.fromarray(image(number, size)), "label": number} for number in range(len(names))]
    folder.mkdir(exist_ok=True)
    datasets.Dataset.from_list(rows, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")


def test_class_names_match_up_to_spaces(tmp_path):
    """The hub spells them with more spaces than we do."""
    for split in COUNTS:
        write_table(tmp_path / "a", split, ["T - shirt / top", *sources.FASHION_CLASSES[1:]])
    assert sources.fashion_mnist(str(tmp_path / "a")).classes == sources.FASHION_CLASSES


def test_wrong_columns_are_listed(tmp_path):
    import datasets

    (tmp_path / "table").mkdir()
    for split in COUNTS:
        datasets.Dataset.from_dict({"a": [1], "b": ["x"]}).to_parquet(tmp_path / f"table/{split}.parquet")
    with pytest.raises(Refused, match=r"one column must hold the images and one the labels, called image and label; it has a, b"):
        cifar2(tmp_path / "table")


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        ("broken", "data/train-00000-of-00001.parquet#7 cannot be decoded"),
        ("null", "data/train-00000-of-00001.parquet#7: no image in this row"),
        ("unlabelled", "data/test-00000-of-00001.parquet row 7 has nothing in the column 'label'"),
    ],
)
def test_bad_image_in_parquet_is_named_by_number(spoilt, message, tmp_path):
    with pytest.raises(Refused, match=message) as refused:
        cifar2(write_parquet(tmp_path / "repository", **{spoilt: 7}))
    assert refused.value.code == 4
