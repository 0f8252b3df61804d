"""Two designs are compared seed by seed, and two trainings image by image; the numbers are scipy's."""

import json
from dataclasses import replace

import pyarrow
import pyarrow.parquet
import pytest
import torch
from made_runs import compared, write_run
from PIL import Image

from launch import commands
from launch.data.dataset import Split
from launch.report import predictions
from launch.report.paired import T, mcnemar, pairs, t_interval


@pytest.fixture(scope="module")
def stats():
    return pytest.importorskip("scipy.stats")


ONE, OTHER = (0.81, 0.84, 0.86), (0.80, 0.82, 0.83)


def write(place, one=ONE, other=OTHER):
    for seed, (mine, its) in enumerate(zip(one, other, strict=True)):
        write_run(place / f"a{seed}", (0.5, mine), seed=seed)
        write_run(place / f"b{seed}", (0.5, its), seed=seed, net="Other")


def test_interval_of_the_paired_differences_is_students(stats, tmp_path):
    write(tmp_path)
    (pair,) = pairs(compared(tmp_path))
    expected = stats.ttest_rel(ONE, OTHER).confidence_interval(0.95)
    assert (pair.one, pair.other, pair.seeds) == ("Net", "Other", 3)
    assert pair.difference == pytest.approx(0.02)
    assert pair.interval == pytest.approx((expected.high - expected.low) / 2, rel=1e-3)
    assert pair.sentence() == "Net is better than Other by 2.00 ± 2.48 points over 3 seeds; may be chance"
    unpaired = stats.ttest_ind(ONE, OTHER).confidence_interval(0.95)  # control: less sure
    assert unpaired.high - unpaired.low > 2 * pair.interval


def test_a_steady_difference_is_more_than_chance(tmp_path):
    write(tmp_path, (0.81, 0.84, 0.86), (0.80, 0.829, 0.849))
    (pair,) = pairs(compared(tmp_path))
    assert pair.more_than_chance
    assert pair.sentence() == "Net is better than Other by 1.07 ± 0.14 points over 3 seeds; more than chance"


def test_control_pairs_of_other_seeds_are_less_sure(tmp_path):
    write(tmp_path, (0.81, 0.84, 0.86), (0.849, 0.80, 0.829))
    (pair,) = pairs(compared(tmp_path))
    assert not pair.more_than_chance


def test_equal_runs_do_not_differ(tmp_path):
    write(tmp_path, ONE, ONE)
    (pair,) = pairs(compared(tmp_path))
    assert (pair.difference, pair.interval, pair.more_than_chance) == (0, 0, False)
    assert pair.sentence() == "Net is as good as Other, by 0.00 ± 0.00 points, over 3 seeds; may be chance"


def test_only_equal_seeds_are_paired(tmp_path):
    for seed in (1, 2, 3):
        write_run(tmp_path / f"a{seed}", (0.5, 0.8 + seed / 100), seed=seed)
    for seed in (3, 4):
        write_run(tmp_path / f"b{seed}", (0.5, 0.7), seed=seed, net="Other")
    write_run(tmp_path / "c", (0.5, 0.6), seed=9, net="Third")
    two, third = pairs(compared(tmp_path))
    assert (two.seeds, two.difference) == (1, pytest.approx(0.13))
    assert third.sentence() == "Net and Third are not compared: no seed in common"


@pytest.mark.parametrize("n", [2, 3, 5, 10, 21, 22, 28, 45, 500])
def test_quantiles_are_scipys_or_larger(n, stats):
    values = [float(index % 7) for index in range(n)]
    exact = stats.t.ppf(0.975, n - 1) * stats.tstd(values) / n**0.5
    assert exact * (1 - 1e-3) <= t_interval(values) <= exact * 1.01
    assert max(T) == 120


@pytest.mark.parametrize(("b", "c"), [(0, 0), (0, 5), (1, 5), (10, 10), (3, 14), (40, 80), (700, 650)])
def test_mcnemar_is_the_exact_binomial(b, c, stats):
    expected = stats.binomtest(b, b + c).pvalue if b + c else 1.0
    assert mcnemar(b, c) == pytest.approx(expected)
    assert mcnemar(c, b) == mcnemar(b, c)


def predict(folder, labels, predicted, images="61"):
    columns = {"label": pyarrow.array(labels, pyarrow.int32()), "predicted": pyarrow.array(predicted, pyarrow.int32())}
    table = pyarrow.table(columns).replace_schema_metadata({"images": images})
    pyarrow.parquet.write_table(table, folder / "predictions.parquet")


def test_one_seed_is_compared_image_by_image(stats, tmp_path, capsys):
    write(tmp_path, (0.81,), (0.70,))
    labels = [0, 1] * 50
    predict(tmp_path / "a0", labels, labels)
    predict(tmp_path / "b0", labels, [1, 0] * 5 + labels[10:])
    (pair,) = pairs(compared(tmp_path))
    assert pair.p == pytest.approx(stats.binomtest(0, 10).pvalue)
    assert pair.sentence().startswith("Net is better than Other by 11.00 points with one seed, McNemar's p = 0.002 on its test")
    assert pair.more_than_chance
    predict(tmp_path / "b0", labels, labels, images="62")  # control
    (pair,) = pairs(compared(tmp_path))
    assert pair.sentence() == "Net and Other are not compared: their test images differ"
    (tmp_path / "b0/predictions.parquet").write_bytes(b"no parquet")
    assert pairs(compared(tmp_path))[0].p is None


@pytest.mark.parametrize("split", ["validation", "test"])
def test_accuracies_of_different_images_get_no_verdict(images, tmp_path, split):
    """The images or labels differ, by what both recorded; the accuracy on `split` ranks here."""
    chosen = {"validation": (0.5, 0.6)} if split == "validation" else {}
    given = replace(images, validation=images.train.select(torch.arange(9)))
    for name, net in (("a", "Net"), ("b", "Other")):
        write_run(tmp_path / name, (0.7, 0.8), net=net, **chosen)
        predictions.write(tmp_path / name, torch.eye(3)[images.test.labels], given)
    assert pairs(compared(tmp_path))[0].difference == 0  # control
    own = getattr(given, split)
    for other in (Split(own.pixels, own.labels.flip(0)), Split(own.pixels.flip(0), own.labels)):
        predictions.write(tmp_path / "b", torch.eye(3)[images.test.labels], replace(given, **{split: other}))
        (pair,) = pairs(compared(tmp_path))
        assert (pair.difference, pair.why) == (None, f"their {split} images differ")
        assert pair.sentence() == f"Net and Other are not compared: their {split} images differ"


def test_validation_images_of_runs_that_did_not_record_them_are_known_by_their_options(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs/a", (0.7, 0.8), validation=(0.5, 0.6), data="photos")
    write_run(tmp_path / "runs/b", (0.7, 0.8), validation=(0.5, 0.9), data="photos", net="Other")
    assert pairs(compared(tmp_path / "runs"))[0].difference == pytest.approx(0.3)
    recorded = json.loads((tmp_path / "runs/b/config.json").read_text())
    recorded["config"]["validation"] = 0.3
    (tmp_path / "runs/b/config.json").write_text(json.dumps(recorded))
    assert commands.main(["compare", "runs"]) == 0
    said = capsys.readouterr().out
    assert "Other, validation 0.3 and Net are not compared: their validation images differ." in said
    assert "is better" not in said


def test_a_row_may_be_the_one_that_others_are_compared_with(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "runs")
    assert commands.main(["compare", "runs", "--against", "Net"]) == 0
    assert "Other is worse than Net by 2.00 ± 2.48 points over 3 seeds; may be chance." in capsys.readouterr().out
    assert commands.main(["compare", "runs", "--against", "Nonesuch"]) == 2
    assert "--against Nonesuch is none of the finished rows: Net; Other" in capsys.readouterr().err
    with Image.open("compare/differences.png") as plot:
        assert plot.width > 300


def test_compare_says_it(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "runs")
    assert commands.main(["compare", "runs", "--json"]) == 0
    (pair,) = json.loads(capsys.readouterr().out)["pairs"]
    assert (pair["seeds"], pair["difference"]) == (3, pytest.approx(0.02))
    assert commands.main(["compare", "runs"]) == 0
    assert "Net is better than Other by 2.00 ± 2.48 points over 3 seeds; may be chance." in capsys.readouterr().out
