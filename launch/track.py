"""What a run reports: `metrics.jsonl` is the record, the screen and W&B are its mirrors.

Only the main process writes. W&B is reached through accelerate's tracker; whatever goes wrong with it is said once and ends the
mirror, never the run.
"""

import json
import os
import secrets
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .data import Images
from .errors import Refused, first_line
from .runs import describe, read_metrics

if TYPE_CHECKING:
    from .cli import Run

PROBE_SECONDS, INIT_SECONDS, FINISH_SECONDS = 2, 15, 60  # of waiting for W&B, at most


class Track:
    """The open record of a run on the main process; on the others every method does nothing.

    What `metrics.jsonl` holds beyond the step `kept` is cut off: it will be written again, with the same values.
    """

    def __init__(self, run: "Run", images: Images, facts: dict, step: int, total: int, kept: int):
        self.world = run.world
        self.main, self.accelerator, self.folder = run.rank == 0, run.accelerator, run.folder
        if not self.main:
            return
        self.console = Console(highlight=False, soft_wrap=True, quiet=run.quiet)
        self.file = _cut(run.folder / "metrics.jsonl", kept)
        self.say(
            f"{run.recipe} {facts['model']}: {facts['parameters']:,} parameters; {len(images.train):,} training and "
            f"{len(images.test):,} test images from {images.source}; {run.world} × "
            f"{run.accelerator.device.type}, {torch.get_num_threads()} threads, precision {run.accelerator.mixed_precision}"
        )
        if images.source == "synthetic":
            self.say("synthetic images are drawings over noise: their accuracy says nothing about photographs")
        self.say(f"continues {run.folder} after step {step:,}" if step else f"run folder {run.folder}")
        self._start_wandb(run, images, facts)
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}")
        self.bar = Progress(*columns, TimeRemainingColumn(), console=self.console, transient=True)
        self.bar.disable = not self.console.is_terminal
        self.task = self.bar.add_task("", total=total, completed=step, note="")
        self.drawn, self.note = 0.0, ""

    def __enter__(self) -> "Track":
        if self.main:
            self.bar.start()
        return self

    def __exit__(self, _kind, error: BaseException | None, _traceback) -> None:
        """Stop the bar, close the record, say why the run ends, finish W&B (FINISH_SECONDS at most)."""
        if self.main:
            self.bar.stop()
            self.file.close()
            if isinstance(error, Refused):
                complain(str(error))  # now: a launcher may end this process while it waits for W&B
                error.said = True
            code = 0 if error is None else getattr(error, "code", 1)
            self._wandb(lambda tracker: tracker.finish(exit_code=code))
            self.accelerator.trackers.clear()
        if isinstance(error, Refused) and self.world > 1:
            # A process that exits with an error has the launcher end the others: all wait until the main one is done.
            self.accelerator.wait_for_everyone()  # collective: a refusal within a run is one on all processes

    def say(self, line: str) -> None:
        """One line on the screen, above the progress bar."""
        if self.main:
            self.console.print(line, markup=False)

    def progress(self, step: int, description: str) -> None:
        """Move the bar; drawn five times a second at most, so that it costs the steps nothing."""
        if self.main and (now := time.monotonic()) - self.drawn > 0.2:
            self.drawn = now
            self.bar.update(self.task, completed=step, description=description, note=self.note)

    def write(self, *events: dict) -> None:
        """Append events of one step to `metrics.jsonl`, then send them to W&B as one step."""
        if not self.main:
            return
        self.file.writelines(json.dumps(event) + "\n" for event in events)
        self.file.flush()
        values = {}
        for event in events:
            # The loss of training and that of an evaluation on the training images are two things.
            group = {"train": "train_eval"}.get(event["split"], event["split"]) if event["event"] == "eval" else "train"
            values |= {f"{group}/{key}": event[key] for key in ("loss", "accuracy") if key in event}
            values |= {key: event[key] for key in ("epoch", "images", "lr", "images_per_second") if key in event}
        if self.accelerator.trackers and events[0]["step"] > self.wandb_state["sent"]:
            # Marked first: a kill between the two leaves a gap in W&B, which metrics.jsonl can fill, and never a double.
            self._mark(events[0]["step"])
            self._wandb(lambda _: self.accelerator.log(values))

    def epoch(self, title: str, loss: float, speed: float, results: dict[str, dict]) -> None:
        """The line on the screen at the end of an epoch."""
        if not self.main:
            return
        self.note = f"loss {loss:.4f}  {speed:,.0f} images/s"
        parts = [f"{title}  loss {loss:.4f}"]
        for split, result in results.items():
            parts.append(f"{split} accuracy {result['accuracy']:.4f} loss {result['loss']:.4f}")
        self.say("  ".join([*parts, f"{speed:,.0f} images/s"]))

    def finish(self, result: dict, pictures: list[Path]) -> None:
        """The end of a run on the screen and in W&B's table of runs; `pictures` go to W&B."""
        if not self.main:
            return
        self.say(f"done: {describe(result)}\n{self.folder}")
        keys = ("parameters", "images_per_second", "seconds", "weights_sha256")
        values = {key: result[key] for key in keys} | {f"best/{key}": value for key, value in result["best"].items()}
        self._wandb(lambda tracker: tracker.summary.update(values))
        if pictures and self.accelerator.trackers:
            import wandb

            self._wandb(lambda tracker: tracker.log({f"final/{path.stem}": wandb.Image(str(path)) for path in pictures}))

    # ------------------------------------------------------------------------------------------------------------------- W&B

    def _wandb(self, call: Callable[[Any], Any]) -> None:
        if not self.accelerator.trackers:
            return
        try:
            call(self.accelerator.get_tracker("wandb", unwrap=True))
        except Exception as error:  # a mirror may break in any way; the record goes on
            self.accelerator.trackers.clear()
            self.say(f"W&B failed ({first_line(error)}); the run goes on without it, metrics.jsonl has everything")

    def _mark(self, step: int) -> None:
        self.wandb_state["sent"] = step
        (self.folder / "wandb.json").write_text(json.dumps(self.wandb_state))

    def _start_wandb(self, run: "Run", images: Images, facts: dict) -> None:
        """Start or continue the run's one W&B run; unreachable, it is kept offline beside the other files.

        auto follows WANDB_MODE if it is set, else it is online when a key is configured and offline when not.
        """
        mode = (os.environ.get("WANDB_MODE") or "auto") if run.wandb == "auto" else run.wandb
        if mode == "disabled":
            return
        try:
            import wandb  # takes a second: only where it is used

            settings = wandb.setup().settings
            if mode == "auto":
                mode = "online" if _has_key(settings) else "offline"
            if mode == "online" and (why := _unreachable(settings.base_url)):
                self.say(f"W&B: {why}; logging offline")
                mode = "offline"
            file = run.folder / "wandb.json"
            self.wandb_state = json.loads(file.read_text()) if file.exists() else {"id": secrets.token_hex(4), "sent": -1}
            self._mark(self.wandb_state["sent"])
            about = {"shards": run.shards, "world_size": run.world, "fingerprint": images.fingerprint[:16]}
            options = {
                "config": run.config | facts | about,  # at init: filters see only what is given here
                "name": f"{run.recipe}-{run.config.get('net', facts['model'])}-s{run.seed}",
                "group": run.recipe,
                "job_type": "train",
                "tags": ["synthetic" if images.source == "synthetic" else "data"],
                "dir": str(run.folder),
                "id": self.wandb_state["id"],
                "resume": "allow",
                "mode": mode,
                "settings": wandb.Settings(
                    init_timeout=INIT_SECONDS, finish_timeout=FINISH_SECONDS, console="off", silent=True
                ),
            }
            try:
                self.accelerator.init_trackers("oneloop", init_kwargs={"wandb": options})
            except wandb.errors.Error as error:
                if mode != "online":
                    raise
                self.say(f"W&B: {first_line(error)}; logging offline")
                self.accelerator.trackers.clear()
                self.accelerator.init_trackers("oneloop", init_kwargs={"wandb": options | {"mode": "offline"}})
            tracker = self.accelerator.get_tracker("wandb", unwrap=True)
            # The first pattern that matches wins, so exact names come before the rest.
            for metric, summary in (("test/accuracy", "max,last"), ("test/loss", "min,last"), ("train/loss", "min,last")):
                tracker.define_metric(metric, step_metric="epoch", summary=summary)
            tracker.define_metric("*", step_metric="epoch")
            self.say(f"W&B {tracker.url}" if tracker.url else f"W&B offline in {run.folder / 'wandb'}")
        except Exception as error:  # a broken installation, a full disk, a refused key: never the run's end
            self.accelerator.trackers.clear()
            self.say(f"W&B cannot start ({first_line(error)}); the run goes on without it")


def _cut(path: Path, step: int) -> TextIO:
    """Open `path` for appending after its events up to `step`."""
    kept = [event for event in read_metrics(path) if event["step"] <= step]
    temporary = path.with_name(f".tmp-{path.name}")
    temporary.write_text("".join(json.dumps(event) + "\n" for event in kept))
    temporary.replace(path)
    return open(path, "a")


def _has_key(settings) -> bool:
    from requests.utils import get_netrc_auth  # wandb depends on requests, and reads the same file

    return bool(settings.api_key or get_netrc_auth(settings.base_url))


def _unreachable(url: str) -> str:
    """Why nothing answers at `url`, "" if something does: wandb itself would wait for a minute and a half."""
    try:
        urllib.request.urlopen(url, timeout=PROBE_SECONDS).close()
    except urllib.error.HTTPError:
        return ""  # an answer
    except (OSError, ValueError) as error:
        return f"{url} cannot be reached ({first_line(error)})"
    return ""


def complain(line: str) -> None:
    """One line on standard error."""
    print(line, file=sys.stderr, flush=True)
