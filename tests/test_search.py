"""`oneloop sweep --search`: rungs that continue runs bit for bit, a search that was killed goes on, validation images choose."""

import os
import re
import shlex
import signal
import subprocess
from pathlib import Path

import jobs
import pytest
import search as searching
from conftest import ROOT, metrics, result
from search import search
from trained import train_here

from launch.commands import sweep_search, sweep_slurm
from launch.errors import Refused
from launch.report.runs import read_json

CIFAR2 = ROOT / "recipes/cifar2.py"
RANGES = ("--lr", "1e-3..1e-1", "--batch", "8..32")
FLAGS = ("--search", 3, "--epochs", "1..9", "--validation", 0.5, *RANGES)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def table(out: str) -> str:
    """What a search says at its end."""
    return out[out.index("validation  epochs") :]


def runs(place: Path, epochs: int) -> list[Path]:
    """The finished run folders of so many epochs."""
    ended = [path.parent for path in sorted(place.glob("runs/cifar2/*/result.json"))]
    return [folder for folder in ended if read_json(folder / "config.json")["config"]["epochs"] == epochs]


def test_each_rung_continues_the_best_third_bit_for_bit_and_a_killed_search_goes_on(here, capsys):
    for name in ("killed", "whole", "alone"):
        os.makedirs(name)
    os.chdir("whole")
    assert search(CIFAR2, *FLAGS) == 0
    whole = capsys.readouterr().out
    assert [len(runs(here / "whole", epochs)) for epochs in (1, 3, 9)] == [3, 1, 1]
    assert "began anew" not in whole

    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r}); import search; search.search({str(CIFAR2)!r}, *sys.argv[1:])"
    )
    job = jobs.python("-c", code, *FLAGS, cwd=here / "killed")
    jobs.wait_for(lambda: len(runs(here / "killed", 1)) > 1, 60)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    before = {path.parent.name for path in here.glob("killed/runs/cifar2/*/result.json")}
    assert 1 < len(before) < 5  # control: it was killed within the search
    os.chdir(here / "killed")
    assert search(CIFAR2, *FLAGS) == 0
    again = capsys.readouterr().out
    assert table(again) == table(whole)
    assert before.isdisjoint(re.findall(r"^started (\S+)", again, re.MULTILINE))

    (best,) = runs(here / "whole", 9)
    options = read_json(best / "config.json")["config"]
    os.chdir(here / "alone")
    flags = ("--epochs", 9, "--validation", 0.5, "--lr", options["lr"], "--batch", options["batch"])
    with pytest.MonkeyPatch.context() as patch:
        from launch.sources import synthetic

        patch.setitem(synthetic.COUNTS, "train", 96)
        patch.setitem(synthetic.COUNTS, "test", 20)
        train_here(CIFAR2, *flags, "--track", "none")
    (alone,) = runs(here / "alone", 9)
    assert (alone.name, result(alone)["weights_sha256"]) == (best.name, result(best)["weights_sha256"])
    assert metrics(alone) == metrics(best)
    assert "started_from" not in read_json(alone / "config.json")  # control: never continued
    assert read_json(best / "config.json")["started_from"]["epochs"] == 3


def test_the_best_is_chosen_by_validation_images_and_its_command_is_said(here, capsys):
    assert (
        search(CIFAR2, "--search", 3, "--epochs", 1, "--validation", 0.5, "--net", "Net", "NetWidth", "--lr", "log:0.01..0.05")
        == 0
    )
    out = capsys.readouterr().out
    assert "--net: one of Net, NetWidth\n--lr: from 0.01 to 0.05, by order of magnitude\n3 configurations" in out
    results = {folder: result(folder) for folder in runs(here, 1)}
    highest = max(entry["best"]["accuracy"] for entry in results.values())
    rows = re.findall(r"^(0\.\d+) +1 .*(runs/\S+)$", table(out), re.MULTILINE)
    assert float(rows[0][0]) == pytest.approx(highest, abs=1e-4)
    best = results[here / rows[0][1]]["best"]
    assert f"validation accuracy {rows[0][0]} after epoch {best['epoch']}, test accuracy {best['test']['accuracy']:.4f}" in out
    last = out.splitlines()[-1]
    assert last.startswith(f"accelerate launch {CIFAR2} --data synthetic --validation 0.5 --epochs 1 --net ")


def test_what_diverges_is_told_to_the_sampler_and_not_run_again(here, capsys):
    wild = ("--search", 3, "--epochs", "1..3", "--validation", 0.5, "--l2", "0.001", "1e8", "--batch", 8, "--seed", 1)
    assert search(CIFAR2, *wild) == 0
    out = capsys.readouterr().out
    assert "diverged" in table(out)
    assert "FAIL" in {state for _, _, state in searching.studies[-1].told}
    assert search(CIFAR2, *wild) == 0
    again = capsys.readouterr().out
    assert "started" not in again
    assert table(again) == table(out)


def test_control_a_schedule_that_knows_its_end_begins_anew_and_the_search_says_so(here, capsys):
    flags = ("--search", 3, "--epochs", "1..3", "--validation", 0.5, "--batch", 8, "--lr", "0.01..0.02", "--method", "cosine")
    assert search(ROOT / "recipes/ablations.py", *flags) == 0
    assert "1 of them began anew and did not continue the run of 1 epochs" in capsys.readouterr().out


def test_in_a_queue_each_rung_is_an_array_that_is_waited_for(here, capsys, monkeypatch):
    submitted, elsewhere = [], subprocess.run

    def run(command, **options):
        if command[0] != "sbatch":  # git, for the record
            return elsewhere(command, **options)
        submitted.append(command[1])
        script = Path(command[-1]).read_text()
        for line in re.findall(r"^\d+\) .*set -- (.*) ;;$", script, re.MULTILINE):
            train_here(CIFAR2, *shlex.split(line))
        return subprocess.CompletedProcess(command, 1, "Submitted batch job 7\n", "")  # a task was stopped and ran again

    monkeypatch.setattr(sweep_slurm.subprocess, "run", run)
    monkeypatch.setattr(sweep_slurm.shutil, "which", lambda _: "sbatch")
    flags = ("--search", 3, "--epochs", "1..3", "--validation", 0.5, "--lr", "0.01..0.02", "--track", "none")
    assert search(CIFAR2, *flags, "--on", "slurm") == 0
    queued = table(capsys.readouterr().out)
    assert submitted == ["--wait", "--wait"]
    assert search(CIFAR2, *flags, "--threads", 1) == 0
    assert table(capsys.readouterr().out) == queued.replace(" --on slurm", "")


@pytest.mark.parametrize(
    ("values", "rungs"),
    [(["18"], [18]), (["2..18"], [2, 6, 18]), (["3..20"], [3, 8, 20]), (["1..100"], [1, 3, 10, 32, 100]), (["5..5"], [5])],
)
def test_rungs_end_where_they_are_told(values, rungs):
    assert sweep_search.rungs_of(values) == rungs


REFUSED = {
    "--lr 1e-4..1e-1": "--search needs --epochs",
    "--lr 1e-4..1e-1 --epochs 9..3": "--search needs --epochs",
    "--lr 1e-4..1e-1 --epochs 0..3": "--search needs --epochs",
    "--epochs 1..3 --validation 0.5": "--search has nothing to search",
    "--epochs 3 --lr 1e-4..1e-1": "the test images must not choose: add --validation 0.1",
    "--epochs 3 --lr 1e-1..1e-4 --validation 0.5": "--lr 1e-1..1e-4: the range must go from a number to a larger one",
    "--epochs 3 --l2 1e-3..1e30 --validation 0.5": "--l2 is too large",
    "--epochs 3 --l2 log:0..1 --validation 0.5": "must begin above 0",
    "--epochs 3 --lr 1e-4..1e-1 1 --validation 0.5": "one range, or several values",
    "--epochs 3 --lr 0.1..0.2 --seed 1 2 --validation 0.5": "--seed must have one value in a search",
    "--epochs 3 --lr 0.1..0.2 --limit 5..9 --validation 0.5": "--limit must have one value in a search",
}


@pytest.mark.parametrize("words", REFUSED)
def test_wrong_flags_start_nothing(words, here, capsys):
    assert search(CIFAR2, "--search", 3, *words.split()) == 2
    done = capsys.readouterr()
    assert REFUSED[words] in done.err
    assert "started" not in done.out
    assert not (here / "runs").exists()


def test_without_optuna_one_line_says_what_to_install(here, capsys, monkeypatch):
    monkeypatch.setitem(searching.sys.modules, "optuna", None)
    with pytest.raises(Refused, match="pip install optuna"):
        sweep_search._optuna()


def test_optuna_proposes_the_same_again(here, capsys):
    """The real one: what it proposes depends on its seed and on what it was told."""
    optuna = pytest.importorskip("optuna")
    proposed = []
    for seed, better in ((1, 0), (1, 0), (1, 1), (2, 0)):
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=3)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        space = {"--lr": optuna.distributions.FloatDistribution(1e-4, 1e-1, log=True)}
        for _ in range(2):
            trials = [study.ask(space) for _ in range(3)]
            values = [sweep_search._flags(trial.params) for trial in trials]
            for number, trial in enumerate(trials):
                trial.report(number if better else -number, 1)
                study.tell(trial, number if better else -number)
        proposed.append(values)
    assert proposed[0] == proposed[1]
    assert proposed[0] != proposed[2]
    assert proposed[0] != proposed[3]
