"""Folds of one's own images: by content, groups in one fold, each image judged by a net that has not seen it."""

import csv
import hashlib
import json
import re
import shutil
import statistics
import sys
from collections import Counter, defaultdict

import pyarrow.parquet
import pytest
import torch
from conftest import ROOT, metrics, result, run_recipe
from photos import write_photos
from safetensors.torch import save_file

from launch import sources
from launch.command_line import cli
from launch.data.resize import rule_for
from launch.errors import Refused
from launch.recipe import load
from launch.report import predictions
from launch.sources.options import DataOptions
from launch.sources.split import folds_by_content, split_by_content
from nets.cifar2 import Net

RULE = rule_for(32, 0, 0)
FLAGS = ("--net", "Net", "NetWidth", "--mode", "scratch", "--size", 32, "--epochs", 1, "--batch", 16, "--threads", 1)


def contents(count: int, start: int = 0) -> list[str]:
    return [hashlib.sha256(str(number).encode()).hexdigest() for number in range(start, start + count)]


def test_folds_are_of_one_size_up_to_chance_also_of_what_a_split_leaves():
    """The test's images are those with the highest first digits: were folds drawn by these, the last would be half empty."""
    sides = split_by_content({"a": contents(4000)}, 0.1, 0.2)
    left = [content for content in contents(4000) if sides[content] != "test"]
    counts = Counter(folds_by_content({"a": left}, 5).values())
    assert sorted(counts) == [1, 2, 3, 4, 5]
    assert all(abs(count / len(left) - 0.2) < 4 * (0.2 * 0.8 / len(left)) ** 0.5 for count in counts.values())


def test_adding_images_and_classes_moves_no_image_to_another_fold():
    first = folds_by_content({"b": contents(100)}, 5)
    more = folds_by_content({"a": contents(50, 500), "b": contents(300)}, 5)
    assert {content: more[content] for content in first} == first


def test_a_small_class_is_in_each_fold():
    for number in range(20):
        few = contents(5, 100 * number)
        assert sorted(folds_by_content({"few": few}, 5).values()) == [1, 2, 3, 4, 5]
    with pytest.raises(Refused, match="5 folds need 5 different images, or groups, of each class; few has 4: take fewer folds"):
        folds_by_content({"few": [*contents(4), *contents(4)]}, 5)


@pytest.mark.parametrize("fold", ["0/5", "6/5", "1/1", "1", "a/5", "1/101", "1/5/2", "-1/5"])
def test_a_fold_that_is_none_is_refused(fold):
    with pytest.raises(Refused, match="--fold takes I/K") as refused:
        DataOptions(fold=fold).rule(32)
    assert refused.value.code == 2


def grouped(tmp_path, split="") -> str:
    """A table of 90 photographs of 30 patients, one of them twice, under another patient's name."""
    place = write_photos(tmp_path / "photos", {"ill": 45, "well": 45})
    rows = [(str(path.relative_to(place)), path.parent.name) for path in sorted(place.rglob("*.jpg"))]
    rows = [
        (*row, f"{row[1]} {number % 15}", split and ("test" if number % 15 == 3 else "train")) for number, row in enumerate(rows)
    ]
    shutil.copy(place / rows[0][0], place / "ill/again.jpg")
    rows.append(("ill/again.jpg", "ill", rows[1][2], split and "train"))
    with open(place / "table.csv", "w", newline="") as file:
        csv.writer(file).writerows(
            [("path", "label", "patient", *(["split"] if split else [])), *(row[: 4 if split else 3] for row in rows)]
        )
    return str(place / "table.csv")


@pytest.mark.parametrize("split", ["", "split"])
def test_groups_and_copies_are_in_one_fold_and_test_images_in_none(split, tmp_path, capsys):
    table = grouped(tmp_path, split)
    whole = sources.custom(table, RULE, DataOptions(group="patient"), classes=("ill", "well"))
    tests = {image.name for image in whole.test.images}
    with open(table) as file:
        patient = {row["path"]: row["patient"] for row in csv.DictReader(file)}
    tested, folds = [], defaultdict(set)
    for number in (1, 2, 3):
        images = sources.custom(table, RULE, DataOptions(group="patient", fold=f"{number}/3"))
        assert images.validation is None
        names = {split: [image.name for image in getattr(images, split).images] for split in ("train", "test")}
        tested += names["test"]
        for name in names["test"]:
            folds[patient[name]].add(number)
        assert not {patient[name] for name in names["train"]} & {patient[name] for name in names["test"]}
        assert len(names["train"]) + len(names["test"]) + len(tests) == 91
        assert f"fold {number} of 3: {len(tests)} test images are left out" in capsys.readouterr().err
    assert sorted(tested) == sorted(patient.keys() - tests)  # each once
    assert {len(where) for where in folds.values()} == {1}
    assert folds[patient["ill/again.jpg"]] == folds[min(patient.items())[1]]  # whose photograph it is
    assert len({*map(frozenset, folds.values())}) == 3


def test_control_without_the_column_a_group_is_in_several_folds(tmp_path):
    table = grouped(tmp_path)
    with open(table) as file:
        patient = {row["path"]: row["patient"] for row in csv.DictReader(file)}
    images = sources.custom(table, RULE, DataOptions(fold="1/3"))
    assert {patient[image.name] for image in images.train.images} & {patient[image.name] for image in images.test.images}


def test_without_a_test_part_all_images_are_in_folds(tmp_path):
    photos = write_photos(tmp_path, {"a": 30, "b": 30})
    images = sources.custom(str(photos), RULE, DataOptions(test=0.0, fold="1/2"))
    assert len(images.train) + len(images.test) == 60
    with pytest.raises(Refused, match="leave one of them out"):
        sources.custom(str(photos), RULE, DataOptions(fold="1/2"), validation=0.2)


# ------------------------------------------------------------------------------------------------------------- the recipe


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("folds"), {"a": 30, "b": 30})


def select(photos, out, *flags, stop_when=None) -> None:
    """`python recipes/model_selection.py --folds 3 …` in this process."""
    recipe = load(ROOT / "recipes/model_selection.py")
    words = ("model_selection.py", "--data", photos, "--folds", 3, *FLAGS, "--out", out, *flags)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [*map(str, words)])
        patch.setattr("launch.run.Run.stop_when", stop_when)
        cli(recipe.own_images)


@pytest.fixture(scope="module")
def selected(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("selected") / "run"
    select(photos, out)
    return out


def rows_of(folder) -> dict[str, dict]:
    return {row["path"]: row for row in pyarrow.parquet.read_table(folder / "predictions.parquet").to_pylist()}


def test_each_image_is_predicted_once_by_a_net_that_has_not_seen_it(photos, selected):
    for net in ("1-Net", "2-NetWidth"):
        whole, accuracies = rows_of(selected / net), []
        for fold in (1, 2, 3):
            inside = selected / net / f"fold{fold}"
            with open(inside / "split.csv") as file:
                splits = {row["path"]: row["split"] for row in csv.DictReader(file)}
            part = rows_of(inside)
            assert {path for path, side in splits.items() if side == "test"} == part.keys()
            assert splits.keys() == whole.keys()
            for path, row in part.items():
                assert whole[path] == row | {"id": whole[path]["id"], "fold": fold}
                assert row["true"] == path.split("/")[0]
            accuracies.append(statistics.mean(row["label"] == row["predicted"] for row in part.values()))
        assert [row["id"] for row in whole.values()] == [*range(len(whole))]
        ranked = next(row for row in result(selected)["ranking"] if row["net"] == net[2:])
        assert ranked["folds"] == pytest.approx(accuracies)
        assert ranked["mean"] == pytest.approx(statistics.mean(accuracies))
        assert ranked["deviation"] == pytest.approx(statistics.stdev(accuracies))
        assert ranked["right"] == predictions.read(selected / net).right.sum()


def test_the_line_that_trains_the_best_net(photos, selected):
    best = max(result(selected)["ranking"], key=lambda row: row["mean"])
    assert result(selected)["ranking"][0] == best
    flags = f"--net {best['net']} --mode scratch --size 32 --epochs 1 --batch 16"
    wanted = f"oneloop train custom --data {photos} {flags}".split()
    assert sorted(result(selected)["command"].split()) == sorted(wanted)


def test_each_fold_is_a_run_of_custom(selected, oneloop, photos):
    inside = selected / "1-Net/fold2"
    assert json.loads((inside / "config.json").read_text())["config"]["fold"] == "2/3"
    code, out, error = oneloop("evaluate", inside)
    assert code == 0, error
    assert re.search(f"{result(inside)['test']['accuracy']:.4f}", out)


def test_compare_takes_the_folds_of_a_net_together(selected, oneloop, tmp_path, monkeypatch):
    """One row each, none for the selection itself; the interval is that of Nadeau and Bengio (2003) for folds."""
    monkeypatch.chdir(tmp_path)
    code, out, error = oneloop("compare", selected, "--json")
    assert code == 0, error
    found = json.loads(out)
    one, other = found["rows"]
    assert [len(row["folders"]) for row in (one, other)] == [3, 3]
    ranking = result(selected)["ranking"]
    assert [row["last"]["mean"] for row in (one, other)] == pytest.approx([row["mean"] for row in ranking])
    assert [row["last"]["deviation"] for row in (one, other)] == pytest.approx([row["deviation"] for row in ranking])
    (pair,) = found["pairs"]
    differences = [mine - its for mine, its in zip(ranking[0]["folds"], ranking[1]["folds"], strict=True)]
    assert pair["difference"] == pytest.approx(statistics.mean(differences))
    assert pair["interval"] == pytest.approx(4.303 * statistics.stdev(differences) * (1 / 3 + 1 / 2) ** 0.5)
    assert "over 3 folds" in oneloop("compare", selected)[1]


def test_a_killed_selection_goes_on_with_the_same_bits(photos, selected, tmp_path, capsys):
    out = tmp_path / "run"

    def stop(_run, step, _batch):
        return step == 1 and (out / "1-Net/fold3").exists()

    with pytest.raises(SystemExit):
        select(photos, out, stop_when=stop)
    assert [path.name for path in (out / "1-Net/fold3/checkpoints").iterdir()] == ["step-00000002"]
    assert (out / "1-Net/fold2/result.json").exists()
    assert not (out / "2-NetWidth").exists()
    select(photos, out)
    for fold in sorted(selected.glob("*/fold*")):
        mine = out / fold.relative_to(selected)
        assert metrics(mine) == metrics(fold)
        assert result(mine)["weights_sha256"] == result(fold)["weights_sha256"]
    for file in sorted(selected.glob("*/predictions.parquet")):
        assert (out / file.relative_to(selected)).read_bytes() == file.read_bytes()
    capsys.readouterr()
    select(photos, out)
    assert "already finished" in capsys.readouterr().out


def test_two_processes_share_the_folds_and_change_no_bit(photos, selected, tmp_path):
    flags = ("--data", photos, "--folds", 3, *FLAGS, "--net", "Net", "--out", "run")
    done = run_recipe("model_selection", *flags, processes=2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    whole = "1-Net/predictions.parquet"
    assert (tmp_path / "run" / whole).read_bytes() == (selected / whole).read_bytes()
    assert "to train it: oneloop train custom" in done.stdout


@pytest.mark.parametrize("mode", ["frozen", "gradual"])
def test_folds_of_a_locked_net_share_its_features(mode, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ONELOOP_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    save_file(Net().state_dict(), tmp_path / "net.safetensors")
    flags = ("--net", f"Net={tmp_path / 'net.safetensors'}", "--mode", mode, "--epochs", 2, "--folds", 2)
    select(photos, tmp_path / "run", *flags)
    assert f"--net Net --source {tmp_path / 'net.safetensors'}" in capsys.readouterr().out.splitlines()[-1]
    rows = rows_of(tmp_path / "run/1-Net")
    assert {row["fold"] for row in rows.values()} == {1, 2}
    (features,) = (tmp_path / "cache").glob("features-*.f32")
    with open(features, "rb") as file:
        about = file.readline()
        width = json.loads(about)["width"]
    assert (features.stat().st_size - len(about)) == len(rows) * (36 + 4 * width)  # each image once


@pytest.mark.parametrize(("flags", "why"), [
    (("--folds", 1), "--folds must be at least 2"), (("--net", "Net", "Net"), "each once"),
    (("--validation", 0.1), "leave out --validation"), (("--fold", "1/3"), "leave out --validation and --fold"),
    (("--folds", 70), "70 folds need 70 different images"),
])  # fmt: skip
def test_a_selection_that_cannot_be_is_refused(flags, why, photos, tmp_path, capsys):
    with pytest.raises(SystemExit):
        select(photos, tmp_path / "run", *flags)
    assert why in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
