"""`--validation`: a part of the training images chooses the best weights; the test images are measured at the end only."""

from dataclasses import replace

import jobs
import pytest
import safetensors.torch
from conftest import ROOT, Tiny, metrics, result
from made_runs import compared
from tiny import tiny_images
from training import fit

from launch import Run, evaluate
from launch.data.dataset import Split
from launch.data.images import Images, with_validation
from launch.data.order import folds
from launch.errors import Refused
from launch.recipe import load
from launch.report.runs import read
from launch.training import evaluate as measuring
from launch.weights.tensors import load_weights, weights, weights_sha256

FRACTION = 0.2  # of 21, 20 and 20 images: 4 of each class


@pytest.fixture
def contrary(images) -> Images:
    """Images whose test labels are wrong: what is learned makes the test accuracy worse."""
    return replace(images, test=Split(images.test.pixels, (images.test.labels + 1) % 3))


def lines_of(folder, split: str) -> list[dict]:
    return [line for line in metrics(folder) if line.get("split") == split]


def best_epoch(lines: list[dict]) -> int:
    """The first of the highest accuracy."""
    return max(lines, key=lambda line: line["accuracy"])["epoch"]


# --------------------------------------------------------------------------------------------------------- which images


def rows(split: Split) -> list[list[int]]:
    return [[*pixels.flatten().tolist(), int(label)] for pixels, label in zip(split.pixels, split.labels, strict=True)]


@pytest.mark.parametrize(("fraction", "counts"), [(0.05, [1, 1, 1]), (0.2, [4, 4, 4]), (0.5, [11, 10, 10]), (0.9, [19, 18, 18])])
def test_validation_images_are_a_part_of_each_class(images, fraction, counts):
    cut = with_validation(images, fraction)
    assert cut.validation.labels.bincount().tolist() == counts
    assert cut.train.labels.bincount().tolist() == [whole - part for whole, part in zip([21, 20, 20], counts, strict=True)]
    assert sorted(rows(cut.train) + rows(cut.validation)) == sorted(rows(images.train))
    places = [rows(images.train).index(row) for row in rows(cut.train)]
    assert places == sorted(places)  # an unshuffled epoch sees the images as they came
    assert (cut.test, cut.fingerprint) == (images.test, images.fingerprint)


def test_validation_images_are_a_sample_and_not_the_first_of_a_class(images):
    first = [rows(images.train).index(row) for row in rows(with_validation(images, FRACTION).validation)]
    assert first != list(range(12))


def test_validation_images_do_not_depend_on_the_seed(start, images, tmp_path, monkeypatch):
    """Control: folds do, as model_selection.py draws them."""
    seen = []
    monkeypatch.setattr(measuring, "measure", lambda *args: (seen.append(args[2]), {"loss": 1.0, "accuracy": 0.5, "count": 1})[1])
    for seed in (1, 2):
        fit(start(out=f"seed-{seed}", seed=seed, validation=FRACTION), images, epochs=1)
    first, second = (feed.rows.tolist() for feed in seen if len(feed.labels) == 12)
    assert first == second
    assert folds(images.train.labels, 5, seed=1)[0].tolist() != folds(images.train.labels, 5, seed=2)[0].tolist()


def test_limit_applies_before(tmp_path):
    script = ROOT / "tests/tiny.py"
    job = jobs.begin(script, "--limit", 30, "--validation", FRACTION, "--epochs", 1, "--out", "run", cwd=tmp_path)
    assert job.wait() == 0, job.output
    data = read(tmp_path / "run").config["data"]
    assert (data["train"], data["validation"], data["test"]) == (24, 6, 23)
    assert "24 training, 6 validation and 23 test images" in job.output


@pytest.mark.parametrize("fraction", [-0.1, 0.95, float("nan")])
def test_fraction_out_of_range_is_refused(fraction, start):
    with pytest.raises(Refused, match=r"--validation must be from 0 to 0\.9") as refused:
        start(validation=fraction)
    assert refused.value.code == 2


@pytest.mark.parametrize(
    ("fraction", "count", "why"), [(0.01, 61, "no validation image of a, b, c"), (0.6, 4, "no training image of b, c")]
)
def test_class_without_an_image_on_one_side_is_refused(fraction, count, why, start, tmp_path):
    with pytest.raises(Refused, match=why) as refused:
        fit(start(validation=fraction), tiny_images(count))
    assert refused.value.code == 2
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("recipe", ["model_selection", "by_hand"])
def test_recipes_that_choose_otherwise_refuse_it(recipe, start):
    main = load(ROOT / f"recipes/{recipe}.py").main
    with pytest.raises(Refused, match="leave out --validation") as refused:
        main(start(validation=FRACTION))
    assert refused.value.code == 2


def test_validation_images_of_its_own(start, images, tmp_path):
    """Such as a recipe finds in its data: they choose without the flag, which is refused."""
    own = with_validation(images, FRACTION)
    fit(start(out="own"), own)
    fit(start(out="flag", validation=FRACTION), images)
    assert metrics(tmp_path / "own") == metrics(tmp_path / "flag")
    with pytest.raises(Refused, match="has validation images of its own") as refused:
        fit(start(out="both", validation=FRACTION), own)
    assert refused.value.code == 2


def test_run_without_the_flag_is_called_as_before(start):
    """Its configuration names the folder, which runs from before the flag have."""
    assert "validation" not in start().config
    assert start(out="other", validation=FRACTION).config["validation"] == FRACTION


# --------------------------------------------------------------------------------------------------------- what chooses


def test_validation_chooses_the_best_weights(start, contrary, tmp_path):
    fit(start(validation=FRACTION), contrary)
    lines, best = lines_of(tmp_path / "run", "validation"), result(tmp_path / "run")["best"]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert best["epoch"] == best_epoch(lines)
    assert best["accuracy"] == max(line["accuracy"] for line in lines)
    model = Tiny()
    load_weights(model, safetensors.torch.load_file(tmp_path / "run/best.safetensors"))
    measured = evaluate(start(out="other"), model, with_validation(contrary, FRACTION), "validation")
    assert measured["accuracy"] == best["accuracy"]


def test_control_the_test_images_would_choose_other_weights(start, contrary, tmp_path):
    """The same training, with the validation images taken away: the test images choose another epoch."""
    fit(start(out="chosen", validation=FRACTION), contrary)
    fit(start(out="plain"), replace(with_validation(contrary, FRACTION), validation=None))
    chosen, plain = (result(tmp_path / name) for name in ("chosen", "plain"))
    assert chosen["weights_sha256"] == plain["weights_sha256"]
    assert chosen["test"] == plain["test"]
    assert plain["best"]["epoch"] == best_epoch(lines_of(tmp_path / "plain", "test"))
    assert chosen["best"]["epoch"] != plain["best"]["epoch"]


def test_test_images_are_measured_at_the_end_with_the_last_and_the_best_weights(start, images, tmp_path):
    model = fit(start(validation=FRACTION), images, epochs=6)
    (line,), found = lines_of(tmp_path / "run", "test"), result(tmp_path / "run")
    assert line["epoch"] == 6 != found["best"]["epoch"]
    assert weights_sha256(weights(model)) == found["weights_sha256"]  # the best ones are put away again
    for file, measured in {"model": found["test"], "best": found["best"]["test"]}.items():
        load_weights(model, safetensors.torch.load_file(tmp_path / f"run/{file}.safetensors"))
        assert evaluate(start(out=file), model, images) == measured
    assert found["test"] != found["best"]["test"]


def test_best_weights_of_the_last_epoch_are_measured_once(start, images, tmp_path, monkeypatch):
    whole, measured = measuring.measure, []
    monkeypatch.setattr(measuring, "measure", lambda *args: (measured.append(len(args[2].labels)), whole(*args))[1])
    fit(start(validation=FRACTION), images, epochs=1)
    assert measured == [12, 23, 49]
    assert result(tmp_path / "run")["best"]["test"] == result(tmp_path / "run")["test"]


def test_lost_best_weights_are_refused_and_not_measured(start, images, tmp_path):
    """Others were put in their place while the run was stopped."""
    with pytest.raises(Refused, match="stopped"):
        fit(start(validation=FRACTION, stop_when=evaluation(5)), images, epochs=6)
    fit(start(out="others"), images, epochs=1)
    (tmp_path / "others/best.safetensors").rename(tmp_path / "run/best.safetensors")
    with pytest.raises(Refused, match="has other weights than those of epoch") as refused:
        fit(start(validation=FRACTION), images, epochs=6)
    assert refused.value.code == 4


def test_deleted_best_weights_end_with_the_last_ones_and_a_word(start, images, tmp_path, capsys):
    """Deleted while the run was stopped: nothing could bring them back."""
    with pytest.raises(Refused, match="stopped"):
        fit(start(validation=FRACTION, stop_when=evaluation(5)), images, epochs=6)
    (tmp_path / "run/best.safetensors").unlink()
    fit(start(validation=FRACTION), images, epochs=6)
    said, found = capsys.readouterr().out, result(tmp_path / "run")
    gone = f"best.safetensors is gone: the best weights, of epoch {found['best']['epoch']}, are lost. The last ones are measured"
    assert gone in said
    assert f"test accuracy {found['test']['accuracy']:.4f} (" in said
    assert "with the last weights, as the best ones are lost" in said
    assert (found["weights"], found["best"].get("test")) == ("last", None)
    (group,) = compared(tmp_path / "run").groups
    assert group.measure("last")[0] == found["test"]["accuracy"]


# ---------------------------------------------------------------------------------------------------------------- exact


def evaluation(number: int):
    """For Run.stop_when: a stop in this evaluation of the run's, from 0. The tiny splits are a batch each."""
    seen = iter(range(100))
    return lambda step, batch: batch is not None and next(seen) == number


@pytest.mark.parametrize("number", [0, 5, 6, 7, 8])  # validation of epochs 1 and 6, then test, train, test of the best weights
def test_resume_during_an_evaluation_is_exact(number, start, images, tmp_path):
    fit(start(out="straight", validation=FRACTION), images, epochs=6)
    with pytest.raises(Refused, match="stopped by SIGTERM"):
        fit(start(validation=FRACTION, stop_when=evaluation(number)), images, epochs=6)
    assert not (tmp_path / "run/result.json").exists()
    fit(start(validation=FRACTION), images, epochs=6)
    same(tmp_path / "run", tmp_path / "straight")


def same(folder, reference) -> None:
    names = ("weights_sha256", "best", "validation", "test", "train")
    ours, theirs = ({name: result(place)[name] for name in names} for place in (folder, reference))
    assert ours == theirs
    assert metrics(folder) == metrics(reference)
    assert (folder / "best.safetensors").read_bytes() == (reference / "best.safetensors").read_bytes()


SMALL = """
import launch.data, tiny
from launch import cli
launch.data.MemoryFeed.evaluation_batch = 3  # so that each process has some batches of each split
main = tiny.main
if __name__ == "__main__":
    cli(main)
"""


@pytest.mark.slow
def test_two_processes_and_a_kill_give_the_bits_of_one(tmp_path):
    (tmp_path / "small.py").write_text(SMALL)
    flags = ("--threads", 1, "--micro-batches", 2, "--validation", FRACTION, "--epochs", 6)
    job = jobs.begin(tmp_path / "small.py", *flags, "--out", "one", cwd=tmp_path)
    assert job.wait() == 0, job.output
    assert result(tmp_path / "one")["best"]["epoch"] < 6  # so the best weights are measured by themselves
    kill = ("--rank", 1, "--at", "step=20", "--do", "SIGKILL", "--silence", 5, "--")
    job = jobs.begin(*kill, tmp_path / "small.py", *flags, "--out", "two", cwd=tmp_path, processes=2)
    assert job.wait() != 0
    assert not (tmp_path / "two/result.json").exists()
    job = jobs.begin(tmp_path / "small.py", *flags, "--out", "two", cwd=tmp_path, processes=2)
    assert job.wait() == 0, job.output
    assert "resuming two after step" in job.output
    same(tmp_path / "two", tmp_path / "one")


def test_longer_run_starts_where_the_shorter_one_ended(images, tmp_path, monkeypatch, capsys):
    """The shorter one has measured the test images at its end: that line is not among the longer one's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("launch.report.show.show", lambda *_: None)
    folders = {}
    for name, epochs, out in (("straight", 6, tmp_path / "elsewhere/straight"), ("short", 3, None), ("long", 6, None)):
        run = Run(data="synthetic", wandb="disabled", threads=1, validation=FRACTION, out=out)
        assert run.start("mine", {"epochs": epochs}) is None
        fit(run, images, epochs=epochs)
        folders[name] = run.folder
    assert f"starts where {folders['short']} ended" in capsys.readouterr().out
    same(folders["long"], folders["straight"])
