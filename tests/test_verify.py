"""`oneloop verify` passes where the promises hold, and names the one that does not."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import psutil
import pytest
import torch
from conftest import ROOT, Tiny, result
from jobs import begin, wait_for

from launch import train
from launch.commands import main
from launch.errors import Refused
from launch.report.runs import read
from launch.verify import checks as checking
from launch.verify import trial as trials
from launch.verify.few_tests import fewer
from launch.verify.records import beginnings_near, first_difference
from launch.verify.trial import Trial

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
        """A job, with the part of subprocess.Popen's interface that verify uses."""

        def __init__(self, job):
            self.pid, self.process = job.pid, job.process

        def poll(self) -> int | None:
            return self.process.exitcode

        def wait(self, seconds: float | None = None) -> int:
            self.process.join(seconds)
            return self.process.exitcode

    def fork(trial, name, processes=1, micro_batches=2, gpus=False):
        recipe = (ROOT / "launch/verify/few_tests.py", trial.tests, trial.recipe, *trial.flags)
        fixed = ("--micro-batches", micro_batches, "--threads", 1, "--log-every", 1, "--save-every", 1, "--out", name)
        where = {"cwd": trial.place, "log": trial.place / f"{name}.log", "env": {"ACCELERATE_USE_CPU": "true"}}
        return Forked(begin("--", *recipe, *fixed, processes=processes if processes > 1 else None, **where))

    def verified(recipe: Path, *flags):
        code = main(["verify", str(recipe), *flags, "--out", str(tmp_path / "receipt.json")])
        receipt = json.loads((tmp_path / "receipt.json").read_text())
        return code, {check["what"]: check for check in receipt["checks"]}, capsys.readouterr()

    monkeypatch.setattr(Trial, "begin", fork)
    return verified


@pytest.mark.slow
def test_all_promises_hold_for_a_recipe(verified):
    code, checks, output = verified(ROOT / "tests/tiny.py")
    assert code == 0, output
    assert {what: check["verdict"] for what, check in checks.items() if what != "GPUs"} == {
        "1 process and 2": "pass",
        "a batch in 2 micro-batches and whole": "skipped",
        "killed and resumed": "pass",
        "a damaged checkpoint": "pass",
        "evaluation, every image once": "pass",
    }
    assert len({digest for check in checks.values() for digest in check["digests"].values()}) == 1
    assert checks["a damaged checkpoint"]["detail"].startswith("step-0000")
    assert "1 process and 2" in output.out


@pytest.mark.slow
def test_net_that_is_random_by_rank_fails_one_check(verified, tmp_path):
    (tmp_path / "by_rank.py").write_text(RANDOM)
    code, checks, output = verified(tmp_path / "by_rank.py")
    assert code == 4
    assert [what for what, check in checks.items() if check["verdict"] == "FAIL"] == ["1 process and 2"]
    assert checks["1 process and 2"]["detail"].startswith("first at step 1: loss ")
    assert output.err == "does not hold here: 1 process and 2\n"


@pytest.mark.slow
def test_recipe_that_does_not_run_is_one_line(capsys, tmp_path):
    """With real processes, as a user starts them."""
    flags = ["--data", "synthetic", "--epochs", "0", "--limit", "61"]
    assert main(["verify", str(ROOT / "recipes/cifar2.py"), *flags]) == 2
    assert "--epochs and --batch must be at least 1" in capsys.readouterr().err
    assert main(["verify", str(ROOT / "recipes/cifar2.py"), "--micro-batches", "4"]) == 2
    assert "oneloop verify sets --micro-batches itself: leave it out" in capsys.readouterr().err


@pytest.fixture
def scripted(tmp_path, monkeypatch):
    """scripted(script) -> a trial whose runs execute a shell script; NAME and LIMIT in it stand for the run's."""
    tried = []

    def begin(trial, name, **_):
        limit = trial.flags[trial.flags.index("--limit") + 1]
        tried.append((int(limit), trial.tests))
        script = trial.script.replace("NAME", name).replace("LIMIT", limit)
        return subprocess.Popen(["bash", "-c", script], cwd=trial.place, start_new_session=True)

    def scripted(script, *flags, **known):
        trial = Trial(Path("mine.py"), [*flags], tmp_path, **known)
        trial.script, trial.tried = script, tried
        return trial

    monkeypatch.setattr(Trial, "begin", begin)
    return scripted


LONG = "mkdir NAME; echo > NAME/config.json; [ LIMIT -lt 30 ] || sleep 100; exit 3"


def test_first_run_takes_fewer_images_until_it_is_short(scripted, monkeypatch):
    monkeypatch.setattr(trials, "SHORT_SECONDS", 0.2)
    trial = scripted(LONG)
    assert trial.first() == 3
    assert trial.tried == [(251, 503), (61, 127), (23, 29)]
    assert (trial.flags, trial.tests) == (["--epochs", "3", "--limit", "23"], 29)
    assert 60 < trial.seconds < 65  # of the last try alone


def test_first_run_that_is_short_is_not_repeated_and_data_may_take_long(scripted, monkeypatch):
    monkeypatch.setattr(trials, "SHORT_SECONDS", 0.2)
    trial = scripted("sleep 0.6; mkdir NAME; echo > NAME/config.json; exit 0", "--epochs=2")
    assert trial.first() == 0
    assert trial.tried == [(251, 503)]
    assert trial.flags == ["--epochs=2", "--limit", "251"]
    assert 66 <= trial.seconds < 80


def test_first_run_takes_fewer_images_where_their_number_is_refused(scripted):
    """The last batch leaves batch norm a single image, as with 251 images in 5 folds."""
    trial = scripted("[ LIMIT = 251 ] && exit 2; exit 0")
    assert trial.first() == 0
    assert trial.tried == [(251, 503), (61, 127)]


def test_a_given_limit_is_kept(scripted, monkeypatch):
    monkeypatch.setattr(trials, "SHORT_SECONDS", 0.2)
    trial = scripted(LONG.replace("sleep 100", "sleep 0.5"), "--limit", "1000")
    assert trial.first() == 3
    assert trial.tried == [(1000, 503)]
    assert trial.flags == ["--limit", "1000", "--epochs", "3"]


def test_run_that_hangs_is_ended_by_what_the_first_one_took(scripted):
    trial = scripted("sleep 100", "--limit", "1", seconds=0.3)
    with pytest.raises(Refused, match=r"a run took more than 0 s; try a smaller --limit"):
        trial.run("two")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_leaves_no_process_behind(number, code, scripted, tmp_path, monkeypatch, capsys):
    """Not even one in a session of its own, as torch's launcher starts them; and no folder."""
    made = scripted("setsid sleep 60 & echo $! > ../pid; mv ../pid ../began; sleep 20", "--limit", "1")
    monkeypatch.setattr(Trial, "script", made.script, raising=False)
    (tmp_path / "place").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "place"))

    def stop():
        wait_for(lambda: any((tmp_path / "place").glob("began")))
        os.kill(os.getpid(), number)

    stopper = threading.Thread(target=stop)
    stopper.start()
    flags = ["--limit", "1", "--out", str(tmp_path / "receipt.json")]
    assert main(["verify", str(ROOT / "tests/tiny.py"), *flags]) == code
    stopper.join()
    assert capsys.readouterr().err == f"stopped by {number.name}; nothing was written\n"
    inner = int((tmp_path / "place/began").read_text())
    assert not psutil.pid_exists(inner) or psutil.Process(inner).status() == psutil.STATUS_ZOMBIE
    assert [path.name for path in (tmp_path / "place").iterdir()] == ["began"]
    assert not (tmp_path / "receipt.json").exists()


def test_trial_is_the_recipe_evaluated_on_few_test_images(tmp_path):
    """Training and weights are unchanged."""
    script, flags = ROOT / "tests/tiny.py", ("--data", "synthetic", "--epochs", 2, "--limit", 20)
    jobs = [
        begin(ROOT / "launch/verify/few_tests.py", 7, script, *flags, "--out", "few", cwd=tmp_path),
        begin(ROOT / "launch/verify/few_tests.py", 99, script, *flags, "--out", "whole", cwd=tmp_path),
        begin(script, *flags, "--out", "plain", cwd=tmp_path),
    ]
    assert [job.wait(60) for job in jobs] == [0, 0, 0], jobs[0].output
    few, whole, plain = (result(tmp_path / name) for name in ("few", "whole", "plain"))
    assert len({each["weights_sha256"] for each in (few, whole, plain)}) == 1
    assert [each["test"]["count"] for each in (few, whole, plain)] == [7, 23, 23]
    assert [each["train"]["count"] for each in (few, whole, plain)] == [20, 20, 20]
    assert read(tmp_path / "few").config["data"]["test"] == 7
    assert read(tmp_path / "few").options == read(tmp_path / "plain").options


def test_few_test_images_are_a_sample_and_not_the_first(images):
    """Control: a folder's images come sorted by class."""
    few = fewer(images, 7)
    places = [images.test.pixels.flatten(1).tolist().index(row) for row in few.test.pixels.flatten(1).tolist()]
    assert places == sorted(set(places)) != list(range(7))
    assert few.test.labels.tolist() == [images.test.labels.tolist()[place] for place in places]
    assert few.train is images.train
    assert fewer(images, 23) is images


@pytest.fixture
def recorded(start, images, tmp_path):
    """recorded(name, …) -> the record of two epochs of Tiny without dropout, with these threads and this learning rate."""

    def recorded(name, threads=1, lr=0.1, loss=torch.nn.functional.cross_entropy, **flags):
        torch.manual_seed(0)
        net = Tiny()
        net.drop.p = 0.0
        run = start(name, log_every=1, **flags)
        torch.set_num_threads(threads)
        try:
            optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, fused=True)
            train(run, net, images, optimizer, loss, epochs=2, batch=16)
        finally:
            torch.set_num_threads(1)
        return Trial(Path("tiny.py"), [], tmp_path).records(name)

    return recorded


def test_rounding_is_near_and_another_function_is_not(recorded):
    one = recorded("one")
    near, said = beginnings_near(one, recorded("two", threads=2, micro_batches=1), "no")
    assert near
    assert said.startswith("equal up to rounding (no): loss of step 1 ")
    assert "gradient norm of step 1 " in said
    assert "loss of step 2 " in said
    near, said = beginnings_near(one, recorded("rate", lr=0.3), "no")
    assert not near
    assert said.startswith("step 2: loss ")
    twice = recorded("twice", loss=lambda logits, labels: 1.001 * torch.nn.functional.cross_entropy(logits, labels))
    near, said = beginnings_near(one, twice, "no")
    assert not near
    assert said.startswith("step 1: loss ")
    assert beginnings_near(one, twice, "bf16")[0]  # where so much is rounding


def line(step, loss, norm=None, event="train"):
    return {"event": event, "step": step, "loss": loss} | ({} if norm is None else {"gradient_norm": norm})


SOUND = [line(1, 2.0, 1.0), line(2, 1.0, 1.0), line(3, 0.5, 1.0)]
RECORDS = {  # the other record of a net trained on a GPU -> precision, what is said
    "TF32": ([line(1, 2.0001, 1.01), line(2, 1.001, 1.0), line(3, 0.6, 2.0)], "no", "equal up to rounding"),
    "the third step is no measure": ([line(1, 2.0, 1.0), line(2, 1.0, 1.0), line(3, 9.0, 9.0)], "no", "equal up to rounding"),
    "loss": ([line(1, 2.01, 1.0), line(2, 1.0, 1.0)], "no", "step 1: loss 2 and 2.01 differ by 5.0e-03; rounding is 5e-04"),
    "loss in bf16": ([line(1, 2.005, 1.0), line(2, 1.0, 1.0)], "bf16", "equal up to rounding"),
    "gradient": ([line(1, 2.0, 1.06), line(2, 1.0, 1.0)], "no", "step 1: gradient_norm 1 and 1.06"),
    "gradient in bf16": ([line(1, 2.0, 1.06), line(2, 1.0, 1.0)], "bf16", "equal up to rounding"),
    "update": ([line(1, 2.0, 1.0), line(2, 1.02, 1.0)], "no", "step 2: loss 1 and 1.02"),
    "update in fp16": ([line(1, 2.0, 1.0), line(2, 1.02, 1.0)], "fp16", "step 2: loss 1 and 1.02"),
    "no number": ([line(1, float("nan"), 1.0), line(2, 1.0)], "no", "step 1: loss 2 and nan"),
    "no gradient": ([line(1, 2.0), line(2, 1.0)], "fp16", "step 1: no gradient_norm in one record"),
    "nothing": ([], "no", "step 1: no loss in one record"),
    "evaluation is no step": ([line(1, 2.0, 1.0, event="eval")], "no", "step 1: no loss in one record"),
}


@pytest.mark.parametrize("kind", RECORDS)
def test_beginnings_of_made_up_records(kind):
    theirs, precision, expected = RECORDS[kind]
    near, said = beginnings_near({".": SOUND}, {".": theirs}, precision)
    assert said.startswith(expected)
    assert near == expected.startswith("equal")


def test_the_stage_that_was_trained_first_is_compared(tmp_path):
    trial = Trial(Path("mine.py"), [], tmp_path)
    for name, first in (("ours", 2.0), ("theirs", 2.0)):
        for place, (stage, loss) in enumerate({"z": first, "a": 1.0 if name == "ours" else 3.0}.items()):
            (tmp_path / name / stage).mkdir(parents=True)
            event = {**line(1, loss, 1.0), "epoch": 1, "images": 8, "images_per_second": 1.0, "seconds": 1.0}
            file = tmp_path / name / stage / "metrics.jsonl"
            file.write_text(json.dumps(event) + "\n")
            os.utime(file, (1000 + place, 1000 + place))
    ours, theirs = trial.records("ours"), trial.records("theirs")
    assert beginnings_near(ours, theirs, "no") == (
        True, "equal up to rounding (no): loss of step 1 0.0e+00, gradient norm of step 1 0.0e+00",
    )  # fmt: skip
    assert not beginnings_near(ours, {"a": theirs["a"]}, "no")[0]


@pytest.fixture
def on_gpus(tmp_path, monkeypatch):
    """on_gpus(draws, …) -> the checks of a machine with two GPUs, whose runs leave the records given by name."""

    def on_gpus(draws, **runs):
        def run(trial, name, **options):
            given, code = runs.get(name.replace("-killed", ""), SOUND), 0
            if isinstance(given, int):
                return given
            folder = tmp_path / name
            folder.mkdir(exist_ok=True)
            (folder / "config.json").write_text('{"precision": "no"}')
            (folder / "result.json").write_text(json.dumps({"weights_sha256": str(given)}))
            more = {"epoch": 1, "images": 8, "images_per_second": 1.0, "seconds": 1.0}
            (folder / "metrics.jsonl").write_text("".join(json.dumps(each | more) + "\n" for each in given))
            (tmp_path / f"{name}.log").write_text("no output")
            return code

        def kill_when(trial, condition, name, **options):
            (tmp_path / name).mkdir()
            asked.append((name, options))

        asked = []
        monkeypatch.setattr(Trial, "run", run)
        monkeypatch.setattr(Trial, "kill_when", kill_when)
        trial = Trial(Path("mine.py"), [], tmp_path)
        trial.run("one")
        return {check.what: check for check in checking.on_gpus(trial, 2, draws)}, asked

    return on_gpus


OTHER = [line(1, 2.0, 1.0), line(2, 1.0, 1.0), line(3, 0.50001, 1.0)]


def test_sound_gpus_pass(on_gpus):
    checks, asked = on_gpus(draws=False)
    assert {check.verdict for check in checks.values()} == {"pass"}
    assert list(checks) == ["1 GPU and the CPU", "killed and resumed on the GPU", "1 GPU and 2"]
    assert asked == [("gpu-killed", {"gpus": True})]


def test_net_that_draws_is_not_compared_across_devices(on_gpus):
    checks, _ = on_gpus(draws=True, gpu=OTHER, again=OTHER, gpus=OTHER)
    assert checks["1 GPU and the CPU"].verdict == "skipped"
    assert "dropout" in checks["1 GPU and the CPU"].detail
    assert checks["killed and resumed on the GPU"].verdict == "pass"
    assert checks["1 GPU and 2"].verdict == "pass"


def test_gpu_that_does_not_repeat_itself_cannot_show_exact_resume(on_gpus):
    checks, asked = on_gpus(draws=False, again=OTHER)
    check = checks["killed and resumed on the GPU"]
    assert (check.verdict, asked) == ("skipped", [])
    assert "whose kernels are not deterministic: first at step 3: loss 0.5 and 0.50001" in check.detail


def test_failing_run_on_a_gpu_is_reported(on_gpus, tmp_path):
    (tmp_path / "gpu.log").write_text("out of memory")
    checks, _ = on_gpus(draws=True, gpu=3)
    assert {what: check.verdict for what, check in checks.items()} == {"1 GPU and the CPU": "FAIL"}
    assert checks["1 GPU and the CPU"].detail == "exit code 3: out of memory"


@pytest.mark.parametrize(
    ("net", "batch_independent", "draws"), [("Net", True, False), ("NetDropout", False, True), ("NetBatchNorm", False, False)]
)
def test_whether_outputs_depend_on_the_batch_or_on_chance(net, batch_independent, draws, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    trial = Trial(ROOT / "recipes/cifar2.py", ["--data", "synthetic", "--net", net], tmp_path)
    assert checking.train_mode_traits(trial) == (batch_independent, draws)
    sys.modules.pop("cifar2", None)


def test_first_difference_names_step_key_and_values():
    ours = {".": [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.4}]}
    assert first_difference(ours, ours) == ""
    theirs = {".": [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.41}]}
    assert first_difference(ours, theirs) == "first at step 2: loss 0.4 and 0.41"
    assert first_difference(ours, {".": ours["."][:1]}) == "step 2 is in one record only"
