"""Images with several labels: what tables say of them, training, and each command on the run."""

import csv
import json
from functools import cache

import numpy as np
import pytest
import torch
from conftest import ROOT, metrics, result, run_recipe
from jobs import begin
from made_runs import write_run
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from training import at_step

import oneloop as package
from launch import sources, train
from launch.data.augment import random_resized_crop
from launch.data.mix import cutmix, either, mixup
from launch.data.resize import ResizeRule
from launch.errors import Refused
from launch.sources.custom_images import labels_of
from launch.sources.options import DataOptions
from launch.sources.several import Rules
from launch.sources.split import split_by_content
from launch.sources.table import read

NAMES = ("red", "green", "blue")
FLAGS = ("--net", "Net", "--mode", "scratch", "--size", 32, "--epochs", 2, "--batch", 16, "--threads", 1, "--validation", 0.3)


def write_colours(folder, count=60):
    """Images that have each colour or not, by chance; labels of each."""
    rng, labels = np.random.default_rng(0), []
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        has = rng.random(3) < (0.6, 0.4, 0.25)
        pixels = rng.integers(0, 60, (20, 24, 3)) + 130 * has
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:03}.png")
        labels.append([name for name, there in zip(NAMES, has, strict=True) if there])
    return labels


def write_csv(file, head, rows):
    with open(file, "w", newline="") as out:
        csv.writer(out).writerows([head, *rows])
    return file


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    folder = tmp_path_factory.mktemp("colours")
    labels = write_colours(folder)
    rows = [[f"{number:03}.png", *(int(name in has) for name in NAMES)] for number, has in enumerate(labels)]
    return write_csv(folder / "table.csv", ["path", *NAMES], rows)


@pytest.fixture
def few(tmp_path):
    """few(labels, head) -> a table of as many images."""

    def few(*cells, head=("path", "label")):
        write_colours(tmp_path, len(cells))
        rows = [[f"{number:03}.png", *(cell if isinstance(cell, tuple) else (cell,))] for number, cell in enumerate(cells)]
        return write_csv(tmp_path / "table.csv", head, rows)

    return few


def counts(summary: dict) -> dict[str, int]:
    return {name: row["images"] for name, row in summary["classes"].items()}


# ------------------------------------------------------------------------------------------------------------------ tables


@pytest.mark.parametrize(
    "cells",
    [
        ("cat|dog", "cat", "dog", "dog|cat"),
        ("cat;dog", "cat", "dog", "cat ; dog"),
        ("cat, dog", "cat", "dog", "dog,cat"),
        ('["cat", "dog"]', '["cat"]', '["dog"]', '["cat", "dog"]'),
        ("['cat', 'dog']", "cat", "['dog']", "['dog', 'cat']"),
    ],
)
def test_lists_of_labels_are_several(said, few, cells):
    summary = said(few(*cells))
    assert counts(summary) == {"cat": 3, "dog": 3}
    assert summary["multi_label"] == {"mean": 1.5, "without": 0, "unknown": 0, "together": [["cat", "dog", 2]]}
    assert any("lists of labels" in note or "between them" in note for note in summary["notes"])


def test_columns_of_which_some_have_one_1_in_each_row_are_asked_for(few, tmp_path):
    """ISIC's classes beside a column `male` of 0 and 1 would else be four labels."""
    rows = [(1, 0, 0, 1), (0, 1, 0, 0), (0, 0, 1, 1), (1, 0, 0, 0)]
    table = few(*rows, head=("image", "MEL", "NV", "BCC", "male"))
    with pytest.raises(Refused, match="BCC have one 1 in each row, male besides: --columns label=MEL,NV,BCC takes") as refused:
        read(table, {})
    assert refused.value.code == 2
    alone = read(table, {"label": "MEL,NV,BCC"})
    assert [image.label for image in alone.images] == ["MEL", "NV", "BCC", "MEL"]
    assert read(table, {}, Rules("yes")).multi_label
    with pytest.raises(Refused, match="no column 'NVV'"):
        read(table, {"label": "MEL,NVV"})


def test_one_cell_of_several_labels_among_many_rows_is_asked_for(few):
    table = few("cat|dog", *["cat", "dog"] * 12)
    with pytest.raises(Refused, match="several labels, it seems; --multi-label yes"):
        read(table, {})


@pytest.mark.parametrize(
    ("cells", "classes"),
    [
        (("Smith, John", "Doe, Jane", "Doe, Jane"), {"Doe, Jane": 2, "Smith, John": 1}),
        (
            ("red apple", "green apple", "red pear", "green pear"),
            dict.fromkeys(("green apple", "green pear", "red apple", "red pear"), 1),
        ),
        (('["cat"]', '["dog"]'), {"cat": 1, "dog": 1}),
    ],
)
def test_control_names_with_a_comma_or_blanks_are_classes(said, few, cells, classes):
    summary = said(few(*cells))
    assert counts(summary) == classes
    assert "multi_label" not in summary


@pytest.mark.parametrize("cells", [("a|b", "a|c", "b|c"), ("a|b", "c"), ("left, red", "left, blue", "right, red", "right, blue")])
def test_where_several_labels_are_one_reading_of_two_the_flags_are_named(oneloop, said, few, cells):
    table = few(*cells)
    code, out, error = oneloop("data", table)
    assert (code, out, error.count("\n")) == (4, "", 1)
    assert "--multi-label yes" in error
    assert "--multi-label no" in error
    assert "multi_label" in said(table, "--multi-label", "yes")
    assert len(said(table, "--multi-label", "no")["classes"]) == len(cells)


def test_tags_with_blanks_between_them_are_several_by_their_columns_name(said, oneloop, few):
    cells = ("clear primary", "haze primary water", "clear primary water", "haze primary", "cloudy", "clear primary")
    table = few(*cells, head=("image_name", "tags"))
    assert counts(said(table)) == {"clear": 3, "cloudy": 1, "haze": 2, "primary": 5, "water": 2}
    single = few(*cells, head=("image_name", "label"))
    assert counts(said(single))["clear primary"] == 2
    assert counts(said(single, "--multi-label", "yes"))["primary"] == 5


def test_columns_of_ones_are_several_labels_or_none(said, oneloop, few):
    rows = [(1, 1, 0), (0, 0, 0), (0, 1, 0), (1, 0, 1)]
    summary = said(few(*rows, head=("path", *NAMES)))
    assert counts(summary) == {"red": 2, "green": 2, "blue": 1}
    assert (summary["multi_label"]["without"], sum(summary["splits"].values())) == (1, 4)
    table = few((1, 0), (0, 1), head=("path", "a", "b"))
    assert "multi_label" not in said(table)
    assert "multi_label" in said(table, "--multi-label", "yes")
    for row, how_many in (((0, 0), "no"), ((1, 1), "2")):  # one of many rows may be a mistake
        code, out, error = oneloop("data", table := few(*[(1, 0), (0, 1)] * 12, row, head=("path", "a", "b")))
        assert (code, out, error.count("\n")) == (4, "", 1)
        assert f"row 25 has {how_many} ones: correct it, or --multi-label yes trains on several labels" in error
        assert said(table, "--multi-label", "yes")["images"] == 25
        assert "row 25" in oneloop("data", table, "--multi-label", "no")[2]


def test_uncertain_labels_are_asked_about_and_blank_ones_are_not_there(said, oneloop, few):
    """As CheXpert has them, beside columns that are no labels."""
    rows = [("Male", 60, "1.0", "", ""), ("Female", 41, "-1.0", "1.0", "0.0"), ("Male", 33, "0.0", "1.0", "-1.0")]
    table = few(*rows, head=("Path", "Sex", "Age", "Edema", "Pleural Effusion", "Pneumonia"))
    code, out, error = oneloop("data", table)
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert "2 labels are -1, uncertain: --uncertain ignore leaves them out" in error
    for how, edema, unknown in (("ignore", 1, 2), ("0", 1, 0), ("1", 2, 0)):
        summary = said(table, "--uncertain", how)
        assert (counts(summary)["Edema"], summary["multi_label"]["unknown"]) == (edema, unknown)
        assert "labels that are blank, not mentioned: 2, taken as 0" in summary["notes"]
    listing = read(table, {}, Rules(uncertain="ignore"))
    assert [image.label for image in listing.images] == ["Edema", "Pleural Effusion|?Edema", "Pleural Effusion|?Pneumonia"]
    assert "columns that have no 1: Pneumonia: left out" in listing.notes
    texts = [image.label for image in listing.images]
    assert labels_of(listing, texts, listing.classes).tolist() == [[1, 0], [255, 1], [0, 1]]
    assert oneloop("data", table, "--uncertain", "perhaps")[0] == 2


def test_metadata_with_lists_and_medmnists_rows_of_ones(said, tmp_path):
    labels = write_colours(tmp_path / "train", 4)
    lines = [json.dumps({"file_name": f"{number:03}.png", "labels": has}) for number, has in enumerate(labels)]
    (tmp_path / "train/metadata.jsonl").write_text("\n".join(lines))
    summary = said(tmp_path)
    assert sum(counts(summary).values()) == sum(map(len, labels))
    rng = np.random.default_rng(0)
    arrays = {f"{part}_images": rng.integers(0, 256, (6, 9, 9), dtype=np.uint8) for part in ("train", "val", "test")}
    arrays |= {f"{part}_labels": np.tile([[1, 1, 0], [0, 0, 0]], (3, 1)) for part in ("train", "val", "test")}
    np.savez(tmp_path / "chest.npz", **arrays)
    assert counts(said(tmp_path / "chest.npz")) == {"0": 9, "1": 9}


@pytest.mark.parametrize("numbered", [False, True])
def test_parquet_and_the_hubs_lists_of_classes(said, tmp_path, numbered):
    import pyarrow
    import pyarrow.parquet

    write_colours(tmp_path / "images", 4)
    images = [(tmp_path / f"images/{number:03}.png").read_bytes() for number in range(4)]
    labels = [[0, 2], [], [2], [0]] if numbered else [["cat", "emu"], [], ["emu"], ["cat"]]
    table = pyarrow.table({"image": images, "label": pyarrow.array(labels)})
    if numbered:
        feature = {"feature": {"names": ["cat", "dog", "emu"], "_type": "ClassLabel"}, "_type": "List"}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": {"label": feature}}})})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    summary = said(tmp_path / "a.parquet")
    assert (counts(summary), summary["multi_label"]["without"]) == ({"cat": 2, "emu": 2}, 1)


def test_the_split_is_that_of_single_labels_and_copies_stay_on_one_side(colours, tmp_path):
    def sides(**labels):
        return split_by_content({"": [f"{number:064x}" for number in range(0, 16**6, 99991)], **labels}, 0.2, 0.2)

    assert sides().items() <= sides(rare=["f" * 64]).items()
    images = sources.custom(str(colours), ResizeRule(12, 14), DataOptions())
    again = sources.custom(str(colours), ResizeRule(12, 14), DataOptions(split=_written(images, tmp_path)))
    assert again.fingerprint == images.fingerprint
    assert [image.sha256 for image in again.test.images] == [image.sha256 for image in images.test.images]


def _written(images, place) -> str:
    (place / "split.csv").write_bytes(images.files["split.csv"])
    return str(place / "split.csv")


# ---------------------------------------------------------------------------------------------------------------- training


class Tiny(nn.Module):
    """(N, 3, 12, 12) -> (N, 3), with batch norm and dropout."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.drop, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.3), nn.Linear(100, 3)

    def forward(self, x):
        return self.fc(self.drop(torch.max_pool2d(torch.relu(self.norm(self.conv(x))), 2).flatten(1)))


@cache
def loaded(table):
    return sources.custom(str(table), ResizeRule(12, 14), DataOptions())


def fit(run, table, **options):
    torch.manual_seed(run.seed)
    model = Tiny()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    options = {"epochs": 2, "batch": 16, "augment": random_resized_crop, "mix": either(mixup(), cutmix()), "ema": 0.9} | options
    try:
        return train(run, model, loaded(table), optimizer, **options)
    finally:
        run.end()


@pytest.mark.parametrize("at", [3, 5])
def test_resume_is_exact(start, colours, at, tmp_path):
    fit(start(out="whole"), colours)
    with pytest.raises(Refused, match="stopped"):
        fit(start(stop_when=at_step(at)), colours)
    fit(start(), colours)
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")
    assert result(tmp_path / "run")["weights_sha256"] == result(tmp_path / "whole")["weights_sha256"]


def test_map_chooses_and_the_test_takes_the_threshold_of_validation(start, colours, tmp_path):
    done = fit(start(), colours, epochs=4, ema=0.0, mix=None)
    evals = [line for line in metrics(tmp_path / "run") if line.get("split") == "validation"]
    best = max(evals, key=lambda line: line["mean_average_precision"])
    assert done["best"]["epoch"] == best["epoch"]
    assert done["best"]["test"]["threshold"] == done["best"]["threshold"] == best["threshold"]
    assert done["test"]["threshold"] == evals[-1]["threshold"]
    assert len({line["threshold"] for line in evals}) > 1  # else nothing was shown


def test_without_validation_the_threshold_is_a_half(start, colours):
    images = sources.custom(str(colours), ResizeRule(12, 14), DataOptions(), validation=0.0)
    model = Tiny()
    done = train(start(), model, images, torch.optim.SGD(model.parameters(), lr=0.01), epochs=1, batch=16)
    assert (done["test"]["threshold"], done["best"]["threshold"]) == (0.5, 0.5)


def test_balanced_weighs_having_a_label_as_often_as_not(start, colours):
    from launch.recipe import load as load_recipe

    recipe, images, run = load_recipe(ROOT / "recipes/custom.py"), loaded(colours), start()
    loss = recipe.loss_for(run, images, "balanced", 0.0)
    labels = images.train.labels
    logits = torch.zeros(labels.shape, requires_grad=True)
    loss(logits, labels).backward()
    torch.testing.assert_close(logits.grad.sum(0), torch.zeros(3), atol=1e-6, rtol=0)  # at 0 both sides pull alike
    logits.grad = None
    recipe.loss_for(run, images, "none", 0.0)(logits, labels).backward()
    assert logits.grad.sum(0).abs().min() > 1e-3


@pytest.fixture(scope="module")
def trained(colours, tmp_path_factory):
    place = tmp_path_factory.mktemp("trained")
    done = run_recipe("custom", "--data", colours, *FLAGS, "--micro-batches", 2, "--out", "run", cwd=place, plots=True)
    assert done.returncode == 0, done.stderr
    assert "some plots are missing" not in done.stdout
    assert "several labels an image: " in done.stdout
    return place / "run"


@pytest.mark.usefixtures("own_path")
def test_evaluate_says_what_was_logged_and_predict_gives_those_labels(trained, colours, oneloop):
    best = result(trained)["best"]
    code, out, error = oneloop("evaluate", trained, "--json")
    assert code == 0, error
    found = json.loads(out)
    for name in ("mean_average_precision", "f1", "threshold", "count"):
        assert found[name] == best["test"][name], name
    assert [of["label"] for of in found["labels"]] == [*NAMES]
    with open(trained / "split.csv") as file:
        tests = {row["path"]: row["label"] for row in csv.DictReader(file) if row["split"] == "test"}
    model = package.load(trained)
    predicted = model.predict([colours.parent / path for path in tests])
    assert model.threshold == best["threshold"]
    hits, all_given, there = (dict.fromkeys(NAMES, 0) for _ in range(3))
    for prediction, labels in zip(predicted, tests.values(), strict=True):
        assert {name: p >= model.threshold for name, p in prediction.probabilities.items()} == {
            name: name in prediction.labels for name in NAMES
        }
        for name in NAMES:
            has, given = name in labels.split("|"), name in prediction.labels
            hits[name], all_given[name], there[name] = hits[name] + (has and given), all_given[name] + given, there[name] + has
    f1 = [2 * hits[name] / max(all_given[name] + there[name], 1) for name in NAMES if there[name]]
    assert best["test"]["f1"] == pytest.approx(sum(f1) / len(f1))
    code, out, error = oneloop("predict", trained, *(colours.parent / path for path in tests), "--json")
    assert [tuple(image["labels"]) for image in json.loads(out)] == [prediction.labels for prediction in predicted]
    code, out, _ = oneloop("predict", trained, colours.parent / "000.png", "--csv")
    assert len(out.splitlines()) == 4
    assert out.splitlines()[0].endswith(",given")
    text = oneloop("evaluate", trained)[1]
    assert f"mAP {best['test']['mean_average_precision']:.4f}, F1 {best['test']['f1']:.4f} at threshold" in text


@pytest.mark.usefixtures("own_path")
def test_other_images_are_measured_even_if_each_has_one_label(trained, colours, oneloop, tmp_path):
    write_colours(tmp_path, 6)
    table = write_csv(tmp_path / "t.csv", ["path", *NAMES], [[f"{n:03}.png", *np.eye(3, dtype=int)[n % 3]] for n in range(6)])
    code, out, error = oneloop("evaluate", trained, "--data", table, "--json")
    assert code == 0, error
    assert [of["count"] for of in json.loads(out)["labels"]] == [2, 2, 2]


def test_the_report_has_each_label_and_predictions_are_those_of_the_test(trained):
    import pyarrow.parquet

    page, best = (trained / "report.html").read_text(), result(trained)["best"]
    assert "test mAP" in page
    assert "Each label" in page
    assert not (trained / "confusion.png").exists()
    assert (trained / "labels.png").exists()
    table = pyarrow.parquet.read_table(trained / "predictions.parquet")
    rows = table.to_pydict()
    assert len(rows["id"]) == best["test"]["count"]
    threshold = float(table.schema.metadata[b"threshold"])
    for given, probabilities in zip(rows["given"], rows["probabilities"], strict=True):
        assert given == [name for name, p in zip(NAMES, probabilities, strict=True) if p >= threshold]
    shown = json.loads((trained / "predictions.json").read_text())
    right = sum(given == labels for given, labels in zip(rows["given"], rows["labels"], strict=True))
    assert shown["images_wrong"] == len(rows["id"]) - right


@pytest.mark.usefixtures("own_path")
def test_an_export_says_that_labels_are_several_and_from_where_on(trained, oneloop, tmp_path):
    code, _, error = oneloop("export", trained, "--format", "safetensors", "--out", tmp_path / "net.safetensors")
    assert code == 0, error
    with safe_open(tmp_path / "net.safetensors", framework="pt") as file:  # of each format the same
        about = json.loads(file.metadata()["oneloop"])
    assert about["threshold"] == result(trained)["best"]["threshold"]
    assert "sigmoid" in about["output"]


@pytest.mark.usefixtures("own_path")
def test_runs_and_compare_call_it_map_and_do_not_rank_it_among_accuracies(trained, oneloop, tmp_path):
    value = result(trained)["best"]["test"]["mean_average_precision"]
    assert f"mAP {value:.4f}" in oneloop("runs", trained)[1]
    (row,) = json.loads(oneloop("runs", trained, "--json")[1])
    assert (row["accuracy"], row["mean_average_precision"]) == (None, value)
    out = oneloop("compare", trained, "--markdown")[1]
    assert "| mAP |" in out
    assert "accuracy" not in out.partition("\n")[0]
    code, out, error = oneloop("compare", trained, write_run(tmp_path / "other"))
    assert (code, out) == (2, "")
    assert "accuracy and mAP, which do not compare" in error


@pytest.mark.usefixtures("own_path")
@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("predict", "{run}", "{image}", "--unsure", 0.9), "several labels, from a probability of"),
        (("evaluate", "{run}", "--unsure", 0.9), "several labels, from a probability of"),
        (("export", "{run}", "--format", "onnx", "--int8"), "--int8 is chosen by its accuracy"),
    ],
)
def test_what_several_labels_do_not_have_is_refused_in_one_line(trained, colours, oneloop, command, message):
    words = [str(word).format(run=trained, image=colours.parent / "000.png") for word in command]
    code, out, error = oneloop(*words)
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert message in error


@pytest.mark.slow
def test_killed_on_two_processes_it_ends_with_the_bits_of_one(trained, colours, tmp_path):
    """The main process is killed in an evaluation, one step after a checkpoint; the same command resumes."""
    flags = ("--data", colours, *FLAGS, "--micro-batches", 2, "--save-every", 2, "--out", "run")
    job = begin(
        "--rank", 0, "--at", "evaluate=3", "--do", "SIGKILL", "--", ROOT / "recipes/custom.py", *flags, cwd=tmp_path, processes=2
    )
    assert job.wait(60) != 0
    job = begin(ROOT / "recipes/custom.py", *flags, cwd=tmp_path, processes=2)
    assert job.wait(60) == 0, job.output
    assert "resuming run after step 2" in job.output
    for name in ("model", "best"):
        files = [load_file(place / f"{name}.safetensors") for place in (tmp_path / "run", trained)]
        assert [key for key, tensor in files[0].items() if not tensor.equal(files[1][key])] == [], name
    assert metrics(tmp_path / "run") == metrics(trained)
    for name in ("test", "validation", "best"):
        assert result(tmp_path / "run")[name] == result(trained)[name]
