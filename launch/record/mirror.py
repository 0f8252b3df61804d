"""W&B as the mirror of a run folder: what it is told of a run, live (launch/track.py) and afterwards (`oneloop upload`).

A row of its history is what metrics.jsonl holds of one step; the last row is the end of the run, with pictures. Rows are counted:
those that W&B has are not sent again, so an interrupted, resumed or uploaded run has each of them once.
"""

import base64
import io
import itertools
import json
import os
import secrets
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import first_line
from .runs import home, last_launch, read_json

PROJECT = "oneloop"
PROBE_SECONDS, INIT_SECONDS, FINISH_SECONDS = 2, 15, 60  # of waiting for W&B, at most
ARTIFACT_SECONDS = 600  # the same at the end, with weights to upload


def rows(events: Iterable[dict]) -> list[dict]:
    """W&B's rows for events of metrics.jsonl: one for each step, with the names that its charts have."""
    return [_row(list(of_step)) for _, of_step in itertools.groupby(events, key=lambda event: event["step"])]


def _row(events: list[dict]) -> dict:
    values = {}
    for event in events:
        # The loss of training and that of an evaluation on the training images are two things.
        group = {"train": "train_eval"}.get(event["split"], event["split"]) if event["event"] == "eval" else "train"
        values |= {f"{group}/{key}": event[key] for key in ("loss", "accuracy", "gradient_norm") if key in event}
        values |= {key: event[key] for key in ("epoch", "images", "lr", "images_per_second") if key in event}
    return values


def options(folder: Path, mode: str, facts: dict, job: str = "train", artifacts: bool = False) -> dict[str, Any]:
    """Arguments of `wandb.init` for the run or stage in `folder`; `facts` are those of its net: model, parameters, trainable."""
    import wandb

    place, recorded = home(folder)
    config, data = recorded["config"], recorded["data"]
    stage = "/".join(folder.resolve().relative_to(place).parts)
    latest = last_launch(recorded)
    waits = {"init_timeout": INIT_SECONDS, "finish_timeout": ARTIFACT_SECONDS if artifacts else FINISH_SECONDS}
    waits = {name: seconds for name, seconds in waits.items() if f"WANDB_{name.upper()}" not in os.environ}
    net = config.get("net", facts["model"])
    return {
        # At init: W&B's filters see only what is given here. The recipe's options first, then groups.
        "config": {
            **config,
            "net": net,
            "stage": stage,
            "model": {"name": facts["model"], "parameters": facts["parameters"], "trainable": facts["trainable"]},
            "data": {"name": config["data"], **{key: data[key] for key in ("source", "fingerprint", "train", "test")}},
            "machine": {key: latest[key] for key in ("device", "world_size", "threads", "precision", "versions", "git")},
            "shards": recorded["shards"],
            "command": latest["command"],
        },
        "name": "-".join(filter(None, (config["recipe"], net, stage, f"s{config['seed']}"))),
        "group": config["recipe"],
        "job_type": job,
        "tags": ["synthetic" if data["source"] == "synthetic" else "data", *(["book"] if config.get("book") else [])],
        "dir": str(folder),
        "resume": "allow",
        "mode": mode,
        "settings": wandb.Settings(console="off", silent=True, **waits),
        # A sweep's agent has chosen project and id, in the environment.
        **({} if os.environ.get("WANDB_SWEEP_ID") else {"project": os.environ.get("WANDB_PROJECT") or PROJECT}),
    }


def facts(recorded: dict, result: dict | None) -> dict:
    """What is known of the net of a run or stage: model, parameters, trainable."""
    known = recorded | (result or {})
    return {"model": known.get("model") or known.get("net")} | {key: known.get(key) for key in ("parameters", "trainable")}


def identity(folder: Path, fresh: bool = False) -> dict:
    """{"id": W&B's name for this run, "rows": how many it was sent}: wandb.json, or a new one. A sweep's agent has its own id."""
    known = None if fresh else read_json(folder / "wandb.json")
    chosen = os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None
    if known is None or (chosen and chosen != known["id"]):
        known = {"id": chosen or secrets.token_hex(4), "rows": 0}
    return known


def mark(folder: Path, state: dict) -> None:
    """Write wandb.json; a kill leaves the old one or the new one. Not synced: this is done for each row."""
    temporary = folder / ".tmp-wandb.json"
    temporary.unlink(missing_ok=True)
    with open(temporary, "x") as file:  # a file of its own: never through a link that somebody left there
        json.dump(state, file)
    temporary.replace(folder / "wandb.json")


def axes(run: Any) -> None:
    """Say over what each metric is drawn, and what the table of runs shows of it: best and last."""
    # The first pattern that matches wins, so exact names come before the rest.
    for metric, summary in (("test/accuracy", "max,last"), ("test/loss", "min,last"), ("train_eval/*", None)):
        run.define_metric(metric, step_metric="epoch", summary=summary)
    run.define_metric("train/loss", step_metric="images", summary="min,last")
    for metric in ("train/*", "lr", "images_per_second"):
        run.define_metric(metric, step_metric="images")
    run.define_metric("*", step_metric="epoch")


def end(run: Any, folder: Path, result: dict) -> dict:
    """The last row, from the pictures in `folder` and its predictions.json; also fills the summary with the result."""
    import wandb
    from PIL import Image

    keys = ("parameters", "images_per_second", "seconds", "weights_sha256", "summary")
    best = {f"best/{key}": value for key, value in result.get("best", {}).items()}
    run.summary.update({key: result[key] for key in keys if key in result} | best)
    row: dict[str, Any] = {f"final/{path.stem}": wandb.Image(str(path)) for path in sorted(folder.glob("*.png"))}
    if ranking := result.get("ranking"):
        row["final/ranking"] = wandb.Table([*ranking[0]], data=[[*place.values()] for place in ranking])
    shown = read_json(folder / "predictions.json")
    if shown is None:  # of several stages, or the pictures failed
        return row
    classes, counts = shown["classes"], shown["counts"]
    pairs = [(true, guess) for true, line in enumerate(counts) for guess, count in enumerate(line) for _ in range(count)]
    trues, guesses = zip(*pairs, strict=True)
    row["final/confusion_matrix"] = wandb.plot.confusion_matrix(
        y_true=trues, preds=guesses, class_names=classes, title="Confusion on the test images"
    )
    right = [(sum(line), line[index]) for index, line in enumerate(counts)]
    table = [[name, count, hits, hits / max(count, 1)] for name, (count, hits) in zip(classes, right, strict=True)]
    row["final/classes"] = wandb.Table(["class", "images", "right", "accuracy"], data=table)
    row["final/worst"] = [
        wandb.Image(
            Image.open(io.BytesIO(base64.b64decode(mistake["png"]))),
            caption=f"{classes[mistake['true']]}, not {classes[mistake['predicted']]} ({mistake['probability']:.2f})",
        )
        for mistake in shown["mistakes"]
    ]
    return {key: value for key, value in row.items() if value}


def artifacts(run: Any, folder: Path, result: dict) -> None:
    """Upload the last and the best weights as two versions of one artifact, called latest and best."""
    import wandb

    for alias, file, about in (
        ("best", "best.safetensors", result["best"]),
        ("latest", "model.safetensors", {"accuracy": result["test"]["accuracy"], "epoch": result["epochs"]}),
    ):
        artifact = wandb.Artifact(f"{result['recipe']}-{run.id}", "model", metadata={"net": result["net"], **about})
        artifact.add_file(str(folder / file), name="model.safetensors", policy="immutable")  # never changed: needs no copy
        run.log_artifact(artifact, aliases=[alias])


def settings() -> Any:
    """wandb's own, from its files and the environment."""
    import wandb

    if not os.environ.get("WANDB_MODE"):
        os.environ.pop("WANDB_MODE", None)  # an empty one is no mode for wandb, but an error
    return wandb.setup().settings


def has_key(settings: Any) -> bool:
    from requests.utils import get_netrc_auth  # wandb depends on requests, and reads the same file

    return bool(settings.api_key or get_netrc_auth(settings.base_url))


def unreachable(url: str) -> str:
    """Why nothing answers at `url`, "" if something does: wandb itself would wait for a minute and a half."""
    try:
        urllib.request.urlopen(url, timeout=PROBE_SECONDS).close()
    except urllib.error.HTTPError:
        return ""  # an answer
    except (OSError, ValueError) as error:
        return f"{url} cannot be reached ({first_line(error)})"
    return ""
