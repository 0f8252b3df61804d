"""`oneloop upload`: send finished or interrupted run folders to W&B. What is sent is defined in launch/report/wandb_mirror.py."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..errors import Refused, first_line
from ..report.runs import find, home, in_use, read, read_json, read_metrics, stages


def main(args: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "oneloop upload",
        description="Send run folders to W&B: configuration, history, summary and plots. What W&B already has is not sent\n"
        "again. A run with several stages becomes one W&B run for each stage and one for the whole.",
        epilog="example: oneloop upload runs/cifar2",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders, globs of them, or folders with runs inside")
    parser.add_argument("--new", action="store_true", help="create new W&B runs, for example if the old ones were deleted")
    chosen = parser.parse_args(args)
    folders = find(chosen.runs)

    from ..report import trackers, wandb_mirror

    if trackers.missing(["wandb"]):
        raise Refused("W&B is not installed: pip install wandb", 2)
    settings = wandb_mirror.settings()
    if not wandb_mirror.has_key(settings):
        raise Refused(f"no API key for {settings.base_url}: run `wandb login` or set WANDB_API_KEY", 2)
    if why := wandb_mirror.unusable(settings):
        raise Refused(f"{why}; try again later, the run folders keep everything", 1)
    for folder in folders:
        for part, job in _parts(folder):
            print(_send(part, job, chosen.new), flush=True)


def _parts(folder: Path) -> list[tuple[Path, str]]:
    """The folders of a run that each become a W&B run, with its job type. Raises Refused."""
    result = read(folder).result or {}
    if in_use(folder):
        raise Refused(f"{folder} is in use: upload it once the run has ended", 5)
    inside = stages(folder)
    if not inside:
        return [(folder, "train")]
    each, whole = ("fold", "select") if "ranking" in result else ("train", "stages")
    return [*((stage, each) for stage in inside), (folder, whole)]


def _send(folder: Path, job: str, new: bool) -> str:
    """Send what W&B does not have yet of `folder`; returns a line for the screen. Raises Refused (1)."""
    import wandb

    from ..report import wandb_mirror

    result, rows = read_json(folder / "result.json"), wandb_mirror.rows(read_metrics(folder / "metrics.jsonl"))
    state = wandb_mirror.identity(folder, new)
    known = home(folder)[1] | (result or {})
    facts = {"model": known.get("model") or known.get("net")} | {key: known.get(key) for key in ("parameters", "trainable")}
    options = wandb_mirror.options(folder, "online", facts, job) | {"id": state["id"]}
    options["settings"].finish_timeout_raises = True
    try:
        wandb_mirror.mark(folder, state)  # first: nothing is sent under an id that is not saved
        run = wandb.init(**options)
        arrived = run.starting_step
        wandb_mirror.axes(run)
        for row in rows[arrived:]:
            run.log(row)
        if result and arrived <= len(rows) and (end := wandb_mirror.end(run, folder, result)):
            run.log(end)
        run.finish()
        wandb_mirror.mark(folder, state | {"rows": len(rows) + bool(result)})
    except (wandb.errors.Error, OSError) as error:  # OSError: a folder that may not be written, such as another user's
        raise Refused(f"{folder} could not be sent: {first_line(error)}; run the same command to send the rest", 1) from error
    return f"{folder}: {max(len(rows) - arrived, 0)} of {len(rows)} rows sent, {run.url}"
