"""A run knows the code that it came from, and a longer run the shorter one that it starts from."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import ROOT, Tiny, command, metrics, result
from jobs import begin, run
from tiny import tiny_images

from launch import Run, train
from launch.data.augment import crop_and_flip
from launch.training import checkpoint

RECIPE = '''"""A recipe."""
import torch
from mynets.small import Small
from tiny import tiny_images
from launch import Run, cli, train
from launch.data import crop_and_flip
def main(run: Run, epochs: int = 2, lr: float = 0.1, drop: bool = False):
    model = Small()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, fused=True)
    schedule = (lambda epoch: 1 - epoch / epochs) if drop else None
    train(run, model, tiny_images(run.limit), optimizer, epochs=epochs, batch=8, schedule=schedule, augment=crop_and_flip)
if __name__ == "__main__":
    cli(main)
'''
NET = '''"""Nets."""
import torch
from torch import nn
from mynets.parts import SLOPE
class Small(nn.Module):
    """A net."""
    def __init__(self):
        super().__init__()
        self.norm, self.drop, self.fc = nn.BatchNorm2d(1), nn.Dropout(0.2), nn.Linear(64, 3)
    def forward(self, x):
        return self.fc(self.drop(torch.tanh(SLOPE * self.norm(x)).flatten(1)))  # (N, 3)
'''


@pytest.fixture
def place(tmp_path) -> Path:
    """A user's own recipe, with a package of nets beside it."""
    (tmp_path / "mynets").mkdir()
    (tmp_path / "mine.py").write_text(RECIPE)
    (tmp_path / "mynets/__init__.py").write_text("")
    (tmp_path / "mynets/small.py").write_text(NET)
    (tmp_path / "mynets/parts.py").write_text("SLOPE = 2.0\n")
    (tmp_path / "tiny.py").write_text((ROOT / "tests/tiny.py").read_text())
    return tmp_path


def mine(place: Path, *flags, code: int = 0) -> str:
    """Output of the recipe, which ends with the exit code `code`."""
    job = begin(place / "mine.py", "--data", "synthetic", "--threads", 1, "--wandb", "disabled", *flags, cwd=place)
    assert job.wait() == code, job.output
    return job.output


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def folders(place: Path) -> list[str]:
    return sorted(path.name for path in (place / "runs/mine").iterdir())


def test_edited_net_is_refused_by_name(place):
    mine(place)
    assert "already finished" in mine(place)
    edit(place / "mynets/small.py", "torch.tanh", "torch.relu")
    said = mine(place, code=4)
    assert said.startswith("mynets/small.py changed since runs/mine/")
    assert "--fresh" in said
    assert "--accept-edit" not in said  # there is nothing to resume
    assert len(said.splitlines()) == 1
    edit(place / "mynets/small.py", "torch.relu", "torch.tanh")
    edit(place / "mine.py", "momentum=0.9", "momentum=0.8")
    edit(place / "mynets/parts.py", "2.0", "3.0")  # imported by the net, a number only
    assert mine(place, code=4).startswith("mine.py, mynets/parts.py changed")
    assert "done" in mine(place, "--fresh")
    assert "already finished" in mine(place)  # that of --fresh, by the new code
    assert len(folders(place)) == 2


def test_interrupted_run_takes_an_edit_only_if_told_and_records_it(place):
    begin("--at", "step=12", "--do", "SIGKILL", "--", place / "mine.py", "--data", "synthetic", "--threads", 1, cwd=place).wait()
    edit(place / "mynets/small.py", "Dropout(0.2)", "Dropout(0.3)")
    assert "mynets/small.py changed" in mine(place, code=4)
    (folder,) = (place / "runs/mine").iterdir()
    before = json.loads((folder / "config.json").read_text())
    assert len(before["code"]) == 1
    assert "mynets/small.py changed; the new code is kept in" in mine(place, "--accept-edit")
    recorded = json.loads((folder / "config.json").read_text())["code"]
    assert len(recorded) == 2
    assert recorded[0]["mynets/small.py"] != recorded[1]["mynets/small.py"]
    assert "Dropout(0.2)" in (folder / "code/1/mynets/small.py").read_text()
    assert "Dropout(0.3)" in (folder / "code/2/mynets/small.py").read_text()
    assert "already finished" in mine(place)  # the new code is now the run's


def test_module_imported_within_a_function_counts(place):
    (place / "late.py").write_text("# -*- coding: latin-1 -*-\nRATE = 1  # \xe9\n", encoding="latin-1")
    edit(place / "mine.py", "    model = Small()", "    import late\n    model = Small()")
    mine(place)
    edit_latin = (place / "late.py").read_text(encoding="latin-1").replace("RATE = 1", "RATE = 2")
    (place / "late.py").write_text(edit_latin, encoding="latin-1")
    assert mine(place, code=4).startswith("late.py changed since")


def test_comments_docstrings_and_formatting_are_no_edit(place):
    mine(place)
    edit(place / "mynets/small.py", '"""A net."""', '"""Another word for it."""\n\n    # why')
    edit(place / "mine.py", "lr: float = 0.1, drop", "lr: float = 0.1,\n    drop")
    assert "already finished" in mine(place)


def test_copy_is_compared_and_never_run(place):
    """Not even where somebody has put other code in its place: that is told from the recorded digest."""
    mine(place)
    (folder,) = (place / "runs/mine").iterdir()
    (folder / "code/1/mynets/small.py").write_text(f"open({str(place / 'ran')!r}, 'w')")
    edit(place / "mynets/small.py", '"""A net."""', '"""Another word."""')
    assert "mynets/small.py changed" in mine(place, code=4)
    assert not (place / "ran").exists()


def test_run_from_before_copies_were_kept_is_resumed(place):
    mine(place)
    (folder,) = (place / "runs/mine").iterdir()
    recorded = json.loads((folder / "config.json").read_text())
    del recorded["code"]
    (folder / "config.json").write_text(json.dumps(recorded))
    shutil.rmtree(folder / "code")
    assert "already finished" in mine(place)


def test_sweep_and_predict_notice_an_edit(place):
    """A sweep does not answer with results of other code; a trained net is used, and what changed is named."""
    (place / "recipes").mkdir()
    for path in (place / "mine.py", place / "mynets", place / "tiny.py"):
        path.rename(place / "recipes" / path.name)

    def oneloop(*args) -> subprocess.CompletedProcess:
        return run(*command(*args), cwd=place)

    flags = ("--data", "synthetic", "--epochs", 1, "--wandb", "disabled", "--threads", 1)
    job = begin(place / "recipes/mine.py", *flags, cwd=place)
    assert job.wait() == 0, job.output
    (folder,) = (place / "runs/mine").iterdir()
    edit(place / "recipes/mynets/small.py", "torch.tanh", "torch.relu")
    swept = oneloop("sweep", "recipes/mine.py", *flags)
    assert swept.returncode == 4
    assert "mynets/small.py changed since" in swept.stderr
    described = oneloop("evaluate", folder, "--data", "synthetic")
    assert "mynets/small.py changed since" in described.stderr
    assert described.returncode == 4  # and it matters: the net's answers are others
    assert "makes a net that computes something else than the one that was trained" in described.stderr
    edit(place / "recipes/mynets/small.py", "torch.relu", "torch.tanh(input=x) if True else torch.relu")


def test_another_version_of_a_library_is_said_and_recorded(place):
    begin("--at", "step=12", "--do", "SIGKILL", "--", place / "mine.py", "--data", "synthetic", "--threads", 1, cwd=place).wait()
    (folder,) = (place / "runs/mine").iterdir()
    recorded = json.loads((folder / "config.json").read_text())
    assert all(recorded["versions"][name][0].isdigit() for name in ("torch", "pillow", "numpy"))
    recorded["versions"] |= dict.fromkeys(("torch", "pillow", "timm", "numpy"), "0.0.1")
    del recorded["versions"]["wandb"]  # as in a run from before it was recorded
    (folder / "config.json").write_text(json.dumps(recorded))
    said = mine(place)
    for name in ("torch", "pillow", "timm", "numpy"):
        assert f"{name} is " in said
    assert said.count(", and was 0.0.1: the bits may differ from here on") == said.count("the bits may differ") == 4
    assert json.loads((folder / "config.json").read_text())["resumed"][0]["versions"]["torch"] != "2.0.0"


# ------------------------------------------------------------------------------------------------------------- longer runs


@pytest.fixture
def fit(tmp_path, monkeypatch, capsys):
    """fit(epochs, …) -> the folder of a training in this process, in its default place, and what it says."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("launch.report.show.show", lambda *_: None)

    def fit(epochs: int, drop: bool = False, lr: float = 0.1, stop: bool = False, net=Tiny, **flags) -> tuple[Path, str]:
        run = Run(**({"data": "synthetic", "wandb": "disabled", "threads": 1} | flags))
        schedule = (lambda epoch: 1 - epoch / epochs) if drop else None
        assert run.start("mine", {"epochs": epochs, "lr": lr, "drop": drop}) is None
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, fused=True)
        with monkeypatch.context() as patch:
            if stop:
                patch.setattr(checkpoint, "save", lambda *_: pytest.fail("killed before its first checkpoint"))
            try:
                train(run, model, tiny_images(), optimizer, epochs=epochs, batch=8, schedule=schedule, augment=crop_and_flip)
            except pytest.fail.Exception:
                assert stop
            finally:
                run.end()
        return run.folder, capsys.readouterr().out

    return fit


def same(ours: Path, theirs: Path) -> bool:
    assert metrics(ours) == metrics(theirs)
    assert result(ours)["best"] == result(theirs)["best"]
    assert (ours / "best.safetensors").read_bytes() == (theirs / "best.safetensors").read_bytes()
    return result(ours)["weights_sha256"] == result(theirs)["weights_sha256"]


def test_longer_run_starts_where_the_shorter_one_ended(fit, tmp_path):
    """4 epochs after 1 and 2 have the bits, the lines and the best weights of 4 straight, and train 2 only."""
    straight, _ = fit(4, out=tmp_path / "elsewhere/straight")
    fit(1)
    assert "starts where" in fit(2)[1]
    long, said = fit(4)
    assert "starts where runs/mine/" in said
    assert "after 2 epochs" in said
    assert "epoch 2/4" not in said
    assert "epoch 3/4" in said
    assert same(long, straight)


def test_longer_run_killed_before_its_first_checkpoint(fit, tmp_path):
    straight, _ = fit(4, out=tmp_path / "elsewhere/straight")
    fit(2)
    fit(4, stop=True)
    long, _ = fit(4)
    assert same(long, straight)


def test_control_longer_run_that_begins_with_other_weights(fit):
    """The digests are those of a file that was replaced."""
    fit(2)
    _, said = fit(4, net=lambda: Tiny().apply(lambda module: [p.data.mul_(1.01) for p in module.parameters(recurse=False)]))
    assert "ended: it began with other weights" in said
    assert "epoch 1/4" in said


def test_shorter_run_that_is_damaged_is_left_aside(fit):
    short, _ = fit(2)
    (short / "best.safetensors").unlink()
    assert "starts from the beginning and not where" in fit(4)[1]


def test_longer_run_records_where_it_starts(fit):
    """And takes the newest of several that would do: an older one may be of other code."""
    fit(2)
    newest, _ = fit(2, fresh=True)
    long, said = fit(4)
    assert f"starts where {newest} ended" in said
    started = json.loads((long / "config.json").read_text())["started_from"]
    assert (started["folder"], started["epochs"]) == (str(newest), 2)
    assert started["versions"]["torch"] == torch.__version__.partition("+")[0]


def test_longer_run_says_where_else_its_first_epochs_ran(fit):
    """On another device and another version of a library; a control: of the same ones nothing is said."""
    fit(2)
    long, said = fit(3)  # which 4 epochs start from
    assert "its first epochs ran on" not in said
    config = json.loads((long / "config.json").read_text())
    versions = config["versions"] | {"torch": "1.2.3"}
    (long / "config.json").write_text(json.dumps(config | {"device": "elsewhere", "versions": versions}))
    assert "its first epochs ran on torch 1.2.3, device elsewhere\n" in fit(4)[1]


def test_longer_run_that_gets_no_better_has_the_shorter_ones_best(fit):
    """With a rate of 0 no later epoch is better than the first."""

    def net() -> torch.nn.Module:  # without batch norm, whose statistics go on changing
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))

    short, _ = fit(2, lr=0.0, net=net)
    long, _ = fit(4, lr=0.0, net=net)
    assert result(long)["best"]["epoch"] == 1
    assert (short / "best.safetensors").read_bytes() == (long / "best.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("short", "long", "why"),
    [
        ({"drop": True}, {"drop": True}, "the optimizer, depends on the number of epochs"),
        ({}, {"eval_every": 4}, "--eval-every 4 would not evaluate after its last epoch"),
        ({"log_every": 3}, {}, "its lines were logged at other steps"),
        ({}, {"lr": 0.2}, None),  # another run, of which nothing is said
        ({"seed": 2}, {}, None),
        ({}, {"fresh": True}, None),
        ({}, {"micro_batches": 2}, None),
    ],
)
def test_control_run_that_is_not_the_beginning_of_the_longer_one(short, long, why, fit):
    fit(2, **short)
    _, said = fit(4, **long)
    assert "epoch 1/4" in said
    assert "starts where" not in said
    assert ("starts from the beginning" in said) == bool(why)
    assert (why or "") in said


def test_more_epochs_in_the_same_folder_names_the_way(place):
    mine(place, "--epochs", 2, "--out", "run")
    said = mine(place, "--epochs", 4, "--out", "run", code=4)
    assert "epochs was 2, now 4" in said
    assert "another folder beside it: more epochs start from its last checkpoint" in said
    assert "starts where run ended" in mine(place, "--epochs", 4, "--out", "longer")
