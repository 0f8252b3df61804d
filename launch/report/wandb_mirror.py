"""Mirror of a run in W&B, live (run_log.py) and afterwards (`oneloop upload`): rows, configuration, summary, plots, weights.

A row of W&B's history holds the events of one step of metrics.jsonl; the last row has the plots. Rows are counted and sent
once, so interrupted, resumed and uploaded runs have no duplicates. A new value for the charts goes into `rows`, for the end of a
run into `end`.
"""

import base64
import http.client
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
from .fields import SEVERAL
from .runs import WORDS, command, home, last_launch, measure_of, read_json, tested, used

PROJECT = "oneloop"
PROBE_SECONDS, ANSWER_SECONDS, INIT_SECONDS, FINISH_SECONDS = 2, 10, 15, 60  # to wait for W&B, at most
MOST_ANSWER = 1_000_000  # bytes of an answer
ARTIFACT_SECONDS = 600  # instead of FINISH_SECONDS, if weights are uploaded


def rows(events: Iterable[dict]) -> list[dict]:
    """W&B's rows for events of metrics.jsonl: one for each step, keyed by the names of its charts."""
    return [_row(list(of_step)) for _, of_step in itertools.groupby(events, key=lambda event: event["step"])]


def _row(events: list[dict]) -> dict:
    values: dict[str, Any] = {}
    for event in events:
        # "train" is the loss while training, "train_eval" the evaluation on the training images.
        group = {"train": "train_eval"}.get(event["split"], event["split"]) if event["event"] == "eval" else "train"
        measured = ("loss", "accuracy", "balanced_accuracy", "gradient_norm", *SEVERAL)
        values |= {f"{group}/{key}": event[key] for key in measured if key in event}
        values |= {key: event[key] for key in ("epoch", "images", "lr", "images_per_second", "data_wait") if key in event}
    return values


def described(folder: Path, facts: dict) -> tuple[str, dict[str, Any]]:
    """Name and configuration of the run or stage in `folder` for people: the recipe's options come first, then groups."""
    place, recorded = home(folder)
    config, data = recorded["config"], recorded["data"]
    stage = "/".join(folder.resolve().relative_to(place).parts)
    latest = last_launch(recorded)
    net = config.get("net", facts["model"])
    kept = ("source", "fingerprint", "train", "validation", "test")
    return "-".join(filter(None, (config["recipe"], net, stage, f"s{config['seed']}"))), {
        **config,
        "net": net,
        "stage": stage,
        "model": {"name": facts["model"], "parameters": facts["parameters"], "trainable": facts["trainable"]},
        "data": {"name": config["data"], **{key: data[key] for key in kept if key in data}},
        "machine": {key: latest[key] for key in ("device", "world_size", "threads", "precision", "versions", "git")},
        "micro_batches": recorded["micro_batches"],
        "command": command(latest),
    }


def options(folder: Path, mode: str, facts: dict, job: str = "train", artifacts: bool = False) -> dict[str, Any]:
    """Arguments of `wandb.init` for the run or stage in `folder`; `facts` are its net's model, parameters and trainable."""
    import wandb

    name, config = described(folder, facts)
    kind = "synthetic" if config["data"].get("source") == "synthetic" else "data"
    waits: dict[str, Any] = {"init_timeout": INIT_SECONDS, "finish_timeout": ARTIFACT_SECONDS if artifacts else FINISH_SECONDS}
    waits = {name: seconds for name, seconds in waits.items() if f"WANDB_{name.upper()}" not in os.environ}
    return {
        "config": config,  # W&B's filters see only what is given at init
        "name": name,
        "group": config["recipe"],
        "job_type": job,
        "tags": [kind, *(["book"] if config.get("book") else [])],
        "dir": str(folder),
        "resume": "allow",
        "mode": mode,
        "settings": wandb.Settings(console="off", silent=True, **waits),
        # In a W&B sweep the agent has set project and run id in the environment.
        **({} if os.environ.get("WANDB_SWEEP_ID") else {"project": os.environ.get("WANDB_PROJECT") or PROJECT}),
    }


def identity(folder: Path, fresh: bool = False) -> dict:
    """{"id": W&B's run id, "rows": rows sent so far}, from wandb.json or new (always if `fresh`). A W&B sweep sets the id."""
    known = None if fresh else read_json(folder / "wandb.json")
    chosen = os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None
    if known is None or (chosen and chosen != known["id"]):
        known = {"id": chosen or secrets.token_hex(4), "rows": 0}
    return known


def mark(folder: Path, state: dict) -> None:
    """Write wandb.json; a kill leaves the old or the new one. Not synced to disk, as this happens for each row."""
    temporary = folder / ".tmp-wandb.json"
    temporary.unlink(missing_ok=True)
    with open(temporary, "x") as file:  # "x": never writes through a link planted there
        json.dump(state, file)
    temporary.replace(folder / "wandb.json")


def axes(run: Any) -> None:
    """Set the x axis of each metric, and what the table of runs shows of it: best and last."""
    # The first pattern that matches wins: exact names come first.
    for split in ("test", "validation"):
        for measure in WORDS:
            run.define_metric(f"{split}/{measure}", step_metric="epoch", summary="max,last")
        run.define_metric(f"{split}/loss", step_metric="epoch", summary="min,last")
    run.define_metric("train_eval/*", step_metric="epoch")
    run.define_metric("train/loss", step_metric="images", summary="min,last")
    for metric in ("train/*", "lr", "images_per_second", "data_wait"):
        run.define_metric(metric, step_metric="images")
    run.define_metric("*", step_metric="epoch")


def summary(result: dict) -> dict[str, Any]:
    """What the table of runs shows of a `result`. Accuracy and loss are those of the weights that are `used`."""
    keys = ("parameters", "images_per_second", "seconds", "weights_sha256", "summary")
    best = {f"best/{key}": value for key, value in result.get("best", {}).items() if key != "test"}
    best |= {f"best/test_{key}": value for key, value in result.get("best", {}).get("test", {}).items()}
    final: dict[str, Any] = {}
    if "best" in result:
        final = {"weights": used(result), **{key: tested(result)[key] for key in (measure_of(tested(result)), "loss")}}
    return {key: result[key] for key in keys if key in result} | best | final


def end(run: Any, folder: Path, result: dict) -> dict:
    """The last row, from the plots and predictions.json in `folder`. Also writes the result into the run's summary."""
    import wandb
    from PIL import Image

    run.summary.update(summary(result))
    row: dict[str, Any] = {f"final/{path.stem}": wandb.Image(str(path)) for path in sorted(folder.glob("*.png"))}
    if ranking := result.get("ranking"):
        row["final/ranking"] = wandb.Table([*ranking[0]], data=[[*place.values()] for place in ranking])
    shown = read_json(folder / "predictions.json")
    if shown is None:  # a run of several stages, or the plots failed
        return row
    if "labels" in shown:  # of several labels
        names = ("count", "average_precision", "precision", "recall", "f1")
        data = [[name, *(of[key] for key in names)] for name, of in zip(shown["classes"], shown["labels"], strict=True)]
        row["final/labels"] = wandb.Table(["label", *names], data=data)
        return {key: value for key, value in row.items() if value}
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
    """Upload the best and the last weights as two versions of one artifact, with the aliases best and latest."""
    import wandb

    measure = measure_of(result["test"])
    for alias, file, about in (
        ("best", "best.safetensors", result["best"]),
        ("latest", "model.safetensors", {measure: result["test"][measure], "epoch": result["epochs"]}),
    ):
        if not (folder / file).exists():  # somebody deleted it
            continue
        artifact = wandb.Artifact(f"{result['recipe']}-{run.id}", "model", metadata={"net": result["net"], **about})
        artifact.add_file(str(folder / file), name="model.safetensors", policy="immutable")  # never changes: needs no copy
        run.log_artifact(artifact, aliases=[alias])


def settings() -> Any:
    """wandb's own settings, from its files and the environment."""
    import wandb

    if not os.environ.get("WANDB_MODE"):
        os.environ.pop("WANDB_MODE", None)  # wandb rejects an empty mode
    return wandb.setup().settings


def has_key(settings: Any) -> bool:
    """Return whether an API key is configured for the server."""
    return bool(_key(settings))


def _key(settings: Any) -> str:
    from requests.utils import get_netrc_auth  # wandb depends on requests, and reads the same file

    return settings.api_key or (get_netrc_auth(settings.base_url) or ("", ""))[1]


def unusable(settings: Any) -> str:
    """Reason why nothing can be sent to the server, else "". Quick: wandb itself would try for half a minute.

    The server is asked who the key belongs to, as wandb asks it: it may be down, refuse the key, or be something else.
    """
    url, key = settings.base_url, _key(settings)
    asked = urllib.request.Request(f"{url}/graphql", json.dumps({"query": "query Viewer { viewer { id } }"}).encode())
    asked.add_header("Content-Type", "application/json")
    if key:
        asked.add_header("Authorization", "Basic " + base64.b64encode(f"api:{key}".encode()).decode())
    try:
        urllib.request.urlopen(url, timeout=PROBE_SECONDS).close()
    except urllib.error.HTTPError as error:
        error.close()  # an answer
    except (OSError, ValueError) as error:
        return f"{url} cannot be reached ({first_line(error)})"
    try:
        with urllib.request.urlopen(asked, timeout=ANSWER_SECONDS) as answer:
            known = isinstance(json.loads(answer.read(MOST_ANSWER)), dict)
        return "" if known else f"{url} does not answer as W&B's server does"
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in (401, 403):
            return f"{url} refuses the API key ({error.code} {error.reason})" if key else ""  # wandb may have another way in
        return f"{url} answers with {error.code} {error.reason}" if error.code in (404, 429) or error.code >= 500 else ""
    except ValueError:
        return f"{url} does not answer as W&B's server does"
    except (OSError, http.client.HTTPException) as error:
        return f"{url} does not answer ({first_line(error)})"
