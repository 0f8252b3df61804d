"""`oneloop verify` passes where the promises hold, and names the one that does not."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from jobs import begin

from launch.commands import main, verify

RANDOM = """
import os
import tiny
import torch
from launch import cli

class ByRank(tiny.Tiny):
    def forward(self, x):
        chance = torch.Generator().manual_seed(int(os.environ.get("RANK", 0)))
        return super().forward(x) + torch.rand(len(x), 3, generator=chance) * 1e-3

tiny.Tiny = ByRank
main = tiny.main
if __name__ == "__main__":
    cli(main)
"""


@pytest.fixture
def verified(tmp_path, monkeypatch, capsys):
    """verified(recipe, *flags) -> (exit code, {what: check}, output); its processes are forked, as tests/jobs.py says."""

    class Forked:
        """What verify uses of subprocess.Popen, of a job."""

        def __init__(self, job):
            self.pid, self.process = job.pid, job.process

        def poll(self) -> int | None:
            return self.process.exitcode

        def wait(self, seconds: float | None = None) -> int:
            self.process.join(seconds)
            return self.process.exitcode

    def fork(trial, name, processes=1, shards=2, gpus=False):
        recipe = (ROOT / "launch/trial.py", trial.tests, trial.recipe, *trial.flags)
        fixed = ("--shards", shards, "--threads", 1, "--log-every", 1, "--save-every", 1, "--out", name)
        where = {"cwd": trial.place, "log": trial.place / f"{name}.log", "env": {"ACCELERATE_USE_CPU": "true"}}
        return Forked(begin("--", *recipe, *fixed, processes=processes if processes > 1 else None, **where))

    def verified(recipe: Path, *flags):
        code = main(["verify", str(recipe), *flags, "--out", str(tmp_path / "receipt.json")])
        receipt = json.loads((tmp_path / "receipt.json").read_text())
        return code, {check["what"]: check for check in receipt["checks"]}, capsys.readouterr()

    monkeypatch.setattr(verify.Trial, "begin", fork)
    return verified


@pytest.mark.slow
def test_all_promises_hold_for_a_recipe(verified):
    code, checks, output = verified(ROOT / "tests/tiny.py")
    assert code == 0, output
    assert {what: check["verdict"] for what, check in checks.items() if what != "GPUs"} == {
        "1 process and 2": "pass",
        "a batch in 2 slices and whole": "skipped",
        "killed, then the same command": "pass",
        "a broken checkpoint": "pass",
        "evaluation, every image once": "pass",
    }
    assert len({digest for check in checks.values() for digest in check["digests"].values()}) == 1
    assert checks["a broken checkpoint"]["detail"].startswith("step-0000")
    assert "1 process and 2" in output.out


@pytest.mark.slow
def test_net_that_draws_by_rank_fails_the_right_line(verified, tmp_path):
    (tmp_path / "by_rank.py").write_text(RANDOM)
    code, checks, output = verified(tmp_path / "by_rank.py")
    assert code == 4
    assert [what for what, check in checks.items() if check["verdict"] == "FAIL"] == ["1 process and 2"]
    assert checks["1 process and 2"]["detail"].startswith("first at step 1: loss ")
    assert output.err == "does not hold here: 1 process and 2\n"


@pytest.mark.slow
def test_recipe_that_does_not_run_is_one_line(capsys, tmp_path):
    """With real fresh processes, as a user starts them."""
    assert main(["verify", str(ROOT / "recipes/cifar2.py"), "--data", "synthetic", "--epochs", "0"]) == 2
    assert "--epochs and --batch must be at least 1" in capsys.readouterr().err
    assert main(["verify", str(ROOT / "recipes/cifar2.py"), "--shards", "4"]) == 2
    assert "--shards cannot be chosen here" in capsys.readouterr().err


def test_first_difference_names_step_key_and_values():
    ours = {".": [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.4}]}
    assert verify._first_difference(ours, ours) == ""
    theirs = {".": [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.41}]}
    assert verify._first_difference(ours, theirs) == "first at step 2: loss 0.4 and 0.41"
    assert verify._first_difference(ours, {".": ours["."][:1]}) == "step 2 is in one record only"


def test_help_needs_no_torch():
    code = "import sys; from launch.commands import main; main(['verify', '--help'])"
    done = subprocess.run([sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, check=True)
    assert "oneloop verify RECIPE" in done.stdout
    assert " torch" not in done.stderr
