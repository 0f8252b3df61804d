"""W&B mirrors the record: one W&B run for each run, configured at init, and nothing that can slow or stop the training."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import jobs
import pytest
from conftest import ROOT, command, metrics, result, run_recipe
from servers import silent
from wandb_server import KEY, Received, Server, wandb_server

from launch.report import wandb_mirror
from launch.report.runs import read_metrics

FLAGS = ("--data", "synthetic", "--limit", 100, "--epochs", 3, "--threads", 1, "--out", "run")


def online(server: Server) -> dict[str, str]:
    """The environment of a process that logs to `server`, with time to spare on a busy machine."""
    patience = {"WANDB_INIT_TIMEOUT": "60", "WANDB_ERROR_REPORTING": "false"}
    return {"WANDB_MODE": "online", "WANDB_API_KEY": KEY, "WANDB_BASE_URL": server.url, **patience}


def oneloop(*args, **env) -> subprocess.CompletedProcess:
    """The `oneloop` command in a process of its own, since wandb reads its settings once in each."""
    return jobs.run(*command(*args), cwd=ROOT, env=env)


def same(run: Received, folder: Path) -> None:
    """Assert that W&B has what metrics.jsonl has, each step once."""
    trained = [line for line in metrics(folder) if line["event"] == "train"]
    tested = [line for line in metrics(folder) if line["event"] == "eval" and line["split"] == "test"]
    assert [row["images"] for row in run.rows] == [line["images"] for line in trained]
    assert [row["_step"] for row in run.rows] == list(range(len(trained)))
    assert [row["train/loss"] for row in run.rows] == pytest.approx([line["loss"] for line in trained])
    assert [row["test/accuracy"] for row in run.rows] == [line["accuracy"] for line in tested]


def inspect(folder: Path) -> list[dict]:
    """The records of an offline run, as W&B's own reader prints them."""
    out = jobs.run("-m", "wandb", "leet", "inspect", "--json", folder, cwd=ROOT).stdout
    return [json.loads(line) for line in out.splitlines() if line.startswith("{")]


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("plain")
    assert run_recipe("cifar2", *FLAGS, "--wandb", "disabled", cwd=place, plots=True).returncode == 0
    return place / "run"


def test_offline_run_has_the_record_by_epoch(plain, tmp_path):
    """Without a key and with WANDB_MODE empty, which counts as unset; wandb does not prompt."""
    done = run_recipe("cifar2", *FLAGS, cwd=tmp_path, env={"WANDB_MODE": ""})
    assert done.returncode == 0, done.stderr
    assert "W&B offline in run/wandb" in done.stdout
    assert metrics(tmp_path / "run") == metrics(plain)
    assert result(tmp_path / "run")["weights_sha256"] == result(plain)["weights_sha256"]
    (folder,) = (tmp_path / "run/wandb").glob("offline-run-*")
    records = inspect(folder)
    rows = []
    for record in records:
        if record["type"] == "history" and "train/loss" in record["history"]["item"]:
            rows.append(record["history"]["item"])
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    ours = [line for line in metrics(tmp_path / "run") if line["event"] == "train"]
    assert [row["train/loss"] for row in rows] == pytest.approx([line["loss"] for line in ours])
    wanted = {"test/accuracy", "test/loss", "train/gradient_norm", "lr", "images", "images_per_second"}
    assert all(wanted <= row.keys() for row in rows)
    (run,) = (record["run"] for record in records if record["type"] == "run")
    config = run["config"]["update"]
    assert {"net", "lr", "batch", "seed", "precision", "model", "machine"} <= config.keys()  # given at init
    assert run["tags"] == ["synthetic"]


def test_rows_of_the_record():
    """One row for each step; train loss and evaluation on the training images have different names."""
    head = {"step": 4, "epoch": 2, "images": 32}
    events = [
        {"event": "train", "step": 2, "epoch": 1, "images": 16, "loss": 3.0, "lr": 0.1, "seconds": 1.0},
        {"event": "train", **head, "loss": 2.0, "gradient_norm": 7.0, "images_per_second": 9.0},
        {"event": "eval", **head, "split": "test", "loss": 1.0, "accuracy": 0.5, "count": 2},
        {"event": "eval", **head, "split": "train", "loss": 0.5, "accuracy": 0.75, "count": 4},
    ]
    assert wandb_mirror.rows(events) == [
        {"train/loss": 3.0, "epoch": 1, "images": 16, "lr": 0.1},
        {
            "train/loss": 2.0, "train/gradient_norm": 7.0, "images_per_second": 9.0, "epoch": 2, "images": 32,
            "test/loss": 1.0, "test/accuracy": 0.5, "train_eval/loss": 0.5, "train_eval/accuracy": 0.75,
        },
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["refused", "hangs"])
def test_unreachable_server_costs_seconds_and_changes_nothing(kind, plain, tmp_path):
    env = {"WANDB_MODE": "online", "WANDB_API_KEY": KEY}
    with silent() as address:
        env["WANDB_BASE_URL"] = address if kind == "hangs" else "http://127.0.0.1:9"
        began = time.monotonic()
        done = run_recipe("cifar2", *FLAGS, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert "cannot be reached" in done.stdout
    assert "logging offline" in done.stdout
    assert time.monotonic() - began < 40
    assert metrics(tmp_path / "run") == metrics(plain)
    assert len(list((tmp_path / "run/wandb").glob("offline-run-*"))) == 1


@pytest.mark.parametrize(
    ("status", "content", "said"),
    [
        (401, b'{"errors": []}', "refuses the API key (401 Unauthorized)"),
        (403, b"", "refuses the API key (403 Forbidden)"),
        (404, b"", "answers with 404 Not Found"),
        (429, b"", "answers with 429 Too Many Requests"),
        (500, b"oops", "answers with 500 Internal Server Error"),
        (503, b"", "answers with 503 Service Unavailable"),
        (200, b"<html>log in to this network</html>", "does not answer as W&B's server does"),
        (200, b"[1, 2]", "does not answer as W&B's server does"),
        (200, b"\xff\xfe", "does not answer as W&B's server does"),
    ],
)
def test_server_that_would_take_nothing_is_known_at_once(status, content, said):
    with wandb_server() as server:
        settings = SimpleNamespace(base_url=server.url, api_key=KEY)
        assert wandb_mirror.unusable(settings) == ""  # control
        server.broken[""] = status, content
        assert wandb_mirror.unusable(settings) == f"{server.url} {said}"


@pytest.mark.parametrize("where", ["", "RunResumeStatus"])
def test_wrong_key_is_one_true_line_and_the_run_is_logged_offline(where, plain, tmp_path):
    """Refused at once, or later, when wandb itself has begun: the attempt that failed must not be in the way."""
    with wandb_server() as server:
        server.broken[where] = 401, b'{"errors": [{"message": "no"}]}'
        done = run_recipe("cifar2", *FLAGS, cwd=tmp_path, env=online(server))
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if "W&B" in line]
    assert "401" in line
    assert line.endswith("; logging offline in run/wandb")
    assert metrics(tmp_path / "run") == metrics(plain)
    (folder,) = (tmp_path / "run/wandb").glob("offline-run-*")
    assert sum(record["type"] == "history" for record in inspect(folder)) >= 3


def test_a_failed_training_is_failed_there_too(tmp_path):
    """W&B shows a run that ended with an error by its exit code."""
    (tmp_path / "fails.py").write_text(
        "import torch\n"
        "from launch import Run, cli, train\n"
        "from tiny import Tiny, tiny_images\n"
        "def main(run: Run):\n"
        "    model = Tiny()\n"
        "    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n"
        "    images, loss = tiny_images(), lambda logits, _: logits.mean() * torch.nan\n"
        "    train(run, model, images, optimizer, loss, epochs=1, batch=8)\n"
        "cli(main)\n"
    )
    with wandb_server() as server:
        done = jobs.run("fails.py", "--data", "synthetic", "--out", "run", cwd=tmp_path, env=online(server))
    assert done.returncode == 3, done.stderr
    ((_, run),) = server.runs.items()
    assert run.exit_code == 3


def test_broken_wandb_is_reported_once_and_the_record_continues(plain, tmp_path):
    """In a real process, `log` raises from the second epoch on."""
    (tmp_path / "broken.py").write_text(
        "import runpy, sys\n"
        "import wandb\n"
        "calls, log = [], wandb.Run.log\n"
        "def broken(self, *values, **options):\n"
        "    calls.append(1)\n"
        "    if len(calls) > 1: raise BrokenPipeError('service died')\n"
        "    return log(self, *values, **options)\n"
        "wandb.Run.log = broken\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    done = jobs.run("broken.py", ROOT / "recipes/cifar2.py", *FLAGS, cwd=tmp_path, env={"WANDB_MODE": "offline"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("W&B failed (service died)") == 1
    assert metrics(tmp_path / "run") == metrics(plain)


# --------------------------------------------------------------------------------------------- a server, and wandb's own client


def test_online_run_has_configuration_rows_plots_and_weights(tmp_path):
    with wandb_server() as server:
        options = {"env": online(server) | {"WANDB_PROJECT": "birds"}, "plots": True}
        done = run_recipe("cifar2", *FLAGS, "--wandb-artifacts", cwd=tmp_path, **options)
    assert done.returncode == 0, done.stderr
    assert server.unknown == []
    ((name, run),) = server.runs.items()
    assert f"W&B {server.url}/local/birds/runs/{name}" in done.stdout
    same(run, tmp_path / "run")
    assert run.exit_code == 0
    assert {key: run.about[key] for key in ("groupName", "jobType", "displayName", "project")} == {
        "groupName": "cifar2", "jobType": "train", "displayName": "cifar2-Net-s1", "project": "birds",
    }  # fmt: skip
    config = {key: entry["value"] for key, entry in run.config.items() if key != "_wandb"}
    recorded, end = json.loads((tmp_path / "run/config.json").read_text()), result(tmp_path / "run")
    assert config["net"] == "Net"
    assert config["lr"] == 0.01
    assert config["model"] == {"name": "Net", "parameters": 18_090, "trainable": 18_090}
    assert config["data"]["fingerprint"] == recorded["data"]["fingerprint"]
    assert config["machine"]["world_size"] == 1
    axes = {metric.get("1", metric.get("2")): metric for metric in run.config["_wandb"]["value"]["m"]}
    assert {"test/accuracy", "test/loss", "train/loss", "epoch", "images"} <= axes.keys()
    accuracies = [row["test/accuracy"] for row in run.rows]
    assert run.summary["test/accuracy"] == {"max": max(accuracies), "last": accuracies[-1]}
    assert run.summary["best/accuracy"] == end["best"]["accuracy"]
    assert run.summary["weights_sha256"] == end["weights_sha256"]
    (last,) = (row for row in run.history if row not in run.rows)
    plots = {"final/curves", "final/confusion", "final/mistakes", "final/kernels"}
    assert plots | {"final/worst", "final/classes", "final/confusion_matrix_table"} <= last.keys()
    for name in plots:
        assert run.files[last[name]["path"]] == (tmp_path / f"run/{name.removeprefix('final/')}.png").read_bytes()
    shown = json.loads((tmp_path / "run/predictions.json").read_text())
    assert len(last["final/worst"]["captions"]) == len(shown["mistakes"])
    counts = json.loads(run.files[last["final/confusion_matrix_table"]["path"]])["data"]
    assert [count for _, _, count in counts] == [count for line in shown["counts"] for count in line]
    weights = {
        alias["alias"]: artifact["files"]["model.safetensors"]
        for artifact in server.artifacts.values()
        for alias in artifact["aliases"]
        if artifact["artifactTypeName"] == "model" and artifact["committed"]
    }
    assert weights == {
        "best": (tmp_path / "run/best.safetensors").read_bytes(),
        "latest": (tmp_path / "run/model.safetensors").read_bytes(),
    }


def test_killed_and_resumed_is_one_run_with_each_step_once(tmp_path):
    """SIGKILL loses what W&B's own process has not sent yet; the next launch sends it from metrics.jsonl."""
    flags = (*FLAGS, "--epochs", 12, "--limit", 300)
    with wandb_server() as server:
        job = begin(*flags, cwd=tmp_path, env=online(server), rows=4)
        os.killpg(job.pid, signal.SIGKILL)
        job.wait(10)
        assert not (tmp_path / "run/result.json").exists()
        before = len(read_metrics(tmp_path / "run/metrics.jsonl"))
        done = run_recipe("cifar2", *flags, cwd=tmp_path, env=online(server), plots=True)
        assert done.returncode == 0, done.stderr
    assert "resuming run after step" in done.stdout
    assert f"W&B {server.url}" in done.stdout, done.stdout
    assert before >= 4
    (run,) = server.runs.values()
    same(run, tmp_path / "run")
    assert len(run.rows) == 12
    assert len(run.history) == 13


def test_server_that_dies_does_not_end_the_run_and_sync_recovers(tmp_path):
    flags = (*FLAGS, "--epochs", 12, "--limit", 300)
    with wandb_server() as server:
        job = begin(*flags, cwd=tmp_path, env=online(server) | {"WANDB_FINISH_TIMEOUT": "3"}, rows=2)
    began = time.monotonic()
    assert job.wait(60) == 0, job.output
    assert "done: Net" in job.output
    assert time.monotonic() - began < 45
    with wandb_server(int(server.url.rpartition(":")[2])) as again:
        (folder,) = (tmp_path / "run/wandb").glob("run-*")
        synced = jobs.run("-m", "wandb", "sync", "--yes", "--include-online", folder, cwd=tmp_path, env=online(again))
    assert synced.returncode == 0, synced.stderr
    (run,) = again.runs.values()
    same(run, tmp_path / "run")


def test_upload_sends_a_run_made_without_wandb_exactly_once(plain):
    with wandb_server() as server:
        first, second = (oneloop("upload", plain, **online(server)) for _ in range(2))
        assert first.returncode == second.returncode == 0, first.stderr + second.stderr
        ((name, run),) = server.runs.items()
        assert f"3 of 3 rows sent, {server.url}/local/oneloop/runs/{name}" in first.stdout
        assert "0 of 3 rows sent" in second.stdout
        same(run, plain)
        assert len(run.history) == 4
        assert run.summary["weights_sha256"] == result(plain)["weights_sha256"]
        assert oneloop("upload", plain, "--new", **online(server)).returncode == 0
        assert len(server.runs) == 2
        (plain / ".tmp-wandb.json").mkdir()  # wandb.json cannot be written: W&B's run id would be lost
        unkept = oneloop("upload", plain, "--new", **online(server))
        (plain / ".tmp-wandb.json").rmdir()
        assert (unkept.returncode, len(server.runs)) == (1, 2)
        assert "could not be sent: [Errno 21] Is a directory" in unkept.stderr
        assert "Traceback" not in unkept.stderr
    for env, code, why in (
        (online(server), 1, "cannot be reached"),
        (online(server) | {"WANDB_API_KEY": ""}, 2, "no API key for"),
    ):
        refused = oneloop("upload", plain, **env)
        assert refused.returncode == code
        assert why in refused.stderr
        assert "Traceback" not in refused.stderr


def test_upload_sends_each_stage_and_the_whole(tmp_path):
    flags = ("--data", "synthetic", "--limit", 60, "--nets", "LeNet5", "--k", 2, "--epochs", 1, "--wandb", "disabled")
    assert run_recipe("model_selection", *flags, "--out", "run", cwd=tmp_path, plots=True).returncode == 0
    with wandb_server() as server:
        first, second = (oneloop("upload", tmp_path / "run", **online(server)) for _ in range(2))
        assert first.returncode == second.returncode == 0, first.stderr + second.stderr
        assert (first.stdout.count("1 of 1 rows sent"), second.stdout.count("0 of 1 rows sent")) == (2, 2)
        stages = {run.config["stage"]["value"]: run for run in server.runs.values()}
    assert sorted(stages) == ["", "LeNet5/seed0-fold0", "LeNet5/seed0-fold1"]
    whole = stages.pop("")
    assert whole.summary["summary"] == result(tmp_path / "run")["summary"]
    assert {"final/selection", "final/ranking"} <= set(whole.history[0])
    for stage, run in stages.items():
        same(run, tmp_path / "run" / stage)
        assert run.summary["weights_sha256"] == result(tmp_path / "run" / stage)["weights_sha256"]


def test_sweep_agent_sets_project_and_run_id(plain, tmp_path, monkeypatch):
    known = wandb_mirror.identity(plain)["id"]
    assert wandb_mirror.options(plain, "offline", {"model": "Net", "parameters": 1, "trainable": 1})["project"] == "oneloop"
    monkeypatch.setenv("WANDB_RUN_ID", "fromagent")
    assert wandb_mirror.identity(plain)["id"] != "fromagent"  # a run id alone is not a sweep
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    assert wandb_mirror.identity(plain) == {"id": "fromagent", "rows": 0} != {"id": known, "rows": 0}
    for name, rows in {"another": 0, "fromagent": 2}.items():  # the run was already sent
        wandb_mirror.mark(tmp_path, {"id": name, "rows": 2})
        assert wandb_mirror.identity(tmp_path) == {"id": "fromagent", "rows": rows}
    assert "project" not in wandb_mirror.options(plain, "offline", {"model": "Net", "parameters": 1, "trainable": 1})


def begin(*flags, cwd: Path, env: dict, rows: int) -> jobs.Job:
    """Start the recipe; return once metrics.jsonl has evaluations of `rows` epochs."""
    job = jobs.begin(ROOT / "recipes/cifar2.py", *flags, cwd=cwd, env=env, plots=True)
    jobs.wait_for(
        lambda: sum(line["event"] == "eval" for line in read_metrics(cwd / "run/metrics.jsonl")) >= rows or not job.running()
    )
    assert job.running(), job.output
    return job
