"""Log of a run while it trains: `metrics.jsonl` is the record; the terminal, W&B and other trackers mirror it.

Only the main process writes. A new kind of line on the terminal is a method of RunLog; what W&B gets is in wandb_mirror.py, the
other trackers are in trackers.py. If one of them fails, one line says so and the run continues without it.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO, cast

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..console import Screen, complain
from ..data.images import Images
from ..errors import Refused, first_line, printable
from ..files import write_atomically
from ..processes import first_to_say
from . import trackers, wandb_mirror
from .runs import describe, measured, read_metrics


class Running(Protocol):
    """Attributes of a run that the log needs: launch.Run has them."""

    recipe: str
    folder: Path
    wandb_artifacts: bool
    quiet: bool
    world: int
    rank: int
    accelerator: Accelerator

    @property  # read only, so that Run's Literals will do
    def wandb(self) -> str: ...

    @property
    def track(self) -> Sequence[str]: ...

    def on_main(self, action: Callable[[], Any]) -> Any:
        """Run `action` on the main process alone; all processes get its result, or raise its error. Collective."""


class RunLog:
    """The open record of a run on the main process; on the others every method does nothing.

    Lines of `metrics.jsonl` after step `kept` are removed: they will be written again, with the same values. `step` of `total` is
    where the run starts or resumes, `facts` are the net's model, parameters and trainable. Collective: created on all processes
    together. Raises Refused (1) if the record cannot be written.
    """

    def __init__(self, run: Running, images: Images, facts: dict, step: int, total: int, kept: int):
        self.world, self.artifacts = run.world, run.wandb_artifacts
        self.main, self.accelerator, self.folder = run.rank == 0, run.accelerator, run.folder
        recorded: list[dict] = []

        def cut() -> None:
            self.file, kept_events = _cut(run.folder / "metrics.jsonl", kept)
            recorded.extend(kept_events)

        run.on_main(cut)
        self.failure: OSError | None = None  # of writing the record
        if not self.main:
            return
        output = cast("TextIO | None", sys.stdout and Screen(sys.stdout))  # Screen passes on what it does not have
        self.console = Console(file=output, highlight=False, soft_wrap=True, quiet=run.quiet)
        held = "" if images.validation is None else f", {len(images.validation):,} validation"
        self.say(
            f"{run.recipe} {facts['model']}: {facts['parameters']:,} parameters; {len(images.train):,} training{held} and "
            f"{len(images.test):,} test images from {images.source}; {run.world} × "
            f"{run.accelerator.device.type}, {torch.get_num_threads()} threads, precision {run.accelerator.mixed_precision}"
        )
        if images.source == "synthetic":
            self.say("synthetic images are shapes drawn on noise: accuracy on them says nothing about photographs")
        self.say(f"resuming {run.folder} after step {step:,}" if step else f"run folder {run.folder}")
        self._start_wandb(run, facts)
        self.row = 0  # of W&B's history
        for row in wandb_mirror.rows(recorded):
            self._send(row)
        self.mirrors = list[trackers.Mirror]()
        for name in run.track:
            if name in trackers.NAMES:
                self._start_mirror(name, facts, recorded)
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}")
        self.bar = Progress(*columns, TimeRemainingColumn(), console=self.console, transient=True)
        self.bar.disable = not self.console.is_terminal
        self.task = self.bar.add_task("", total=total, completed=step, note="")
        self.drawn, self.note = 0.0, ""

    def __enter__(self) -> "RunLog":
        if self.main:
            self.bar.start()
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        """Stop the bar, close the record, say why the run ends, and wait for W&B (at most wandb_mirror.FINISH_SECONDS)."""
        if self.main:
            self.bar.stop()
            with contextlib.suppress(OSError):  # already reported, or harmless: checkpoints sync the record first
                self.file.close()
            if isinstance(error, Refused):
                if first_to_say(error):
                    complain(str(error))  # now: the launcher may end this process while W&B finishes
                error.said = True
            code = 0 if error is None else getattr(error, "code", 1)
            self._each_mirror(lambda mirror: mirror.finish(code))
            self._wandb(lambda tracker: tracker.finish(exit_code=code))
            self.accelerator.trackers.clear()
        if isinstance(error, Refused) and error.everywhere and self.world > 1:
            # The launcher ends all processes when one exits with an error: they wait until the main one is done.
            self.accelerator.wait_for_everyone()  # collective: not where one has failed alone, whom the others wait for elsewhere

    def say(self, line: str) -> None:
        """Print a line above the progress bar."""
        if self.main:
            self.console.print(printable(line), markup=False)

    def progress(self, step: int, description: str) -> None:
        """Move the bar. It is drawn at most five times a second, so that it does not slow the steps down."""
        if self.main and (now := time.monotonic()) - self.drawn > 0.2:
            self.drawn = now
            self.bar.update(self.task, completed=step, description=description, note=self.note)

    def write(self, *events: dict) -> None:
        """Append events of one step to `metrics.jsonl`, then send them on as one row. `sync` raises what fails here."""
        if not self.main or self.failure:
            return
        try:
            self.file.writelines(json.dumps(event) + "\n" for event in events)
            self.file.flush()
        except OSError as error:
            self.failure = error
            return
        self._send(*wandb_mirror.rows(events))
        self._each_mirror(lambda mirror: mirror.send(events))

    def sync(self) -> None:
        """Flush what was written to disk, before each checkpoint. Main process only. Raises OSError."""
        if self.failure:
            raise self.failure
        os.fsync(self.file.fileno())

    def epoch(self, title: str, loss: float, speed: float, results: dict[str, dict]) -> None:
        """Print the line of an epoch, at its end."""
        if not self.main:
            return
        self.note = f"loss {loss:.4f}  {speed:,.0f} images/s"
        parts = [f"{title}  loss {loss:.4f}"]
        for split, result in results.items():
            parts.append(f"{split} {measured(result)} loss {result['loss']:.4f}")
        self.say("  ".join([*parts, f"{speed:,.0f} images/s"]))

    def finish(self, result: dict, show: Callable[[], Any]) -> None:
        """Print the result, draw the plots with `show()`, and send both to W&B; to other trackers the result's numbers."""
        if not self.main:
            return
        self.say(f"done: {describe(result)}")
        try:
            show()
        except Exception as error:  # the run is finished and recorded, whatever happens here
            self.say(f"some plots are missing: {first_line(error)}")
        self.say(f"{self.folder}")
        self._each_mirror(lambda mirror: mirror.send_result(result))
        self._wandb(lambda run: self._send(wandb_mirror.end(run, self.folder, result)))
        if self.artifacts:
            self._wandb(lambda run: wandb_mirror.artifacts(run, self.folder, result))

    # ------------------------------------------------------------------------------------------------------------------- W&B

    def _wandb(self, call: Callable[[Any], Any]) -> None:
        if not self.accelerator.trackers:
            return
        try:
            call(self.accelerator.get_tracker("wandb", unwrap=True))
        except Exception as error:  # W&B may fail in any way; the record continues
            self.accelerator.trackers.clear()
            self.say(f"W&B failed ({first_line(error)}); the run continues without it, metrics.jsonl has everything")

    def _send(self, row: dict) -> None:
        """Send the next row of the record, unless W&B already has it from an earlier launch."""

        def send(tracker: Any) -> None:
            # Marked first: a kill between the two leaves a gap in an offline run, never a duplicate.
            wandb_mirror.mark(self.folder, self.wandb_state)
            tracker.log(row)

        self.row += 1
        if self.accelerator.trackers and self.row > self.wandb_state["rows"]:
            self.wandb_state["rows"] = self.row
            self._wandb(send)

    def _start_wandb(self, run: Running, facts: dict) -> None:
        """Start or resume the run's one W&B run, offline in the run folder if the server cannot be reached.

        auto: WANDB_MODE if set, else online with a key and offline without.
        """
        mode = (os.environ.get("WANDB_MODE") or "auto") if run.wandb == "auto" else run.wandb
        if mode == "disabled" or "wandb" not in run.track:
            return
        if trackers.missing(["wandb"]):
            self.say("W&B is not installed: pip install wandb; the run continues without it, and --track none asks for none")
            return
        why = ""  # it is not logged online
        try:
            import wandb  # takes a second to import

            settings = wandb_mirror.settings()
            if mode == "auto":
                mode = "online" if wandb_mirror.has_key(settings) else "offline"
            if mode == "online" and (why := wandb_mirror.unusable(settings)):
                mode = "offline"
            self.wandb_state = wandb_mirror.identity(run.folder)
            options = wandb_mirror.options(run.folder, mode, facts, artifacts=run.wandb_artifacts)
            options |= {"id": self.wandb_state["id"]}
            project = options.pop("project", "")  # a sweep has chosen it
            if not project and options["config"]["stage"]:
                self.say("W&B: not logging: a W&B sweep can only log recipes that train once, this one has several stages")
                return
            try:
                self.accelerator.init_trackers(project, init_kwargs={"wandb": options})
            except wandb.errors.Error as error:
                if mode != "online":
                    raise
                why, mode = first_line(error), "offline"
                self.accelerator.trackers.clear()
                wandb.teardown()  # else its service holds the run's id for the attempt that failed
                self.accelerator.init_trackers(project, init_kwargs={"wandb": options | {"mode": mode}})
            tracker = self.accelerator.get_tracker("wandb", unwrap=True)
            wandb_mirror.axes(tracker)
            if mode == "online":
                self.wandb_state["rows"] = tracker.starting_step  # what has arrived, which may be less than was sent
            wandb_mirror.mark(run.folder, self.wandb_state)
            offline = f"W&B: {why}; logging offline in" if why else "W&B offline in"
            self.say(f"W&B {tracker.url}" if tracker.url else f"{offline} {run.folder / 'wandb'}")
        except Exception as error:  # a broken installation, a full disk, a wrong key: nothing here ends a run
            self.accelerator.trackers.clear()
            self.say(f"W&B cannot start ({why and f'{why}; '}{first_line(error)}); the run continues without it")

    # -------------------------------------------------------------------------------------------------------- other trackers

    def _start_mirror(self, name: str, facts: dict, recorded: list[dict]) -> None:
        """Start the tracker `name`, or go on with its run, and send what it lacks of the events `recorded` so far."""
        try:
            mirror = trackers.Mirror(name, self.folder, facts)
            mirror.send(recorded)
        except Exception as error:  # as with W&B: nothing here ends a run
            self.say(f"{trackers.NAMES[name]} cannot start ({first_line(error)}); the run continues without it")
            return
        self.mirrors.append(mirror)
        self.say(f"{trackers.NAMES[name]} {mirror.place}")

    def _each_mirror(self, call: Callable[[trackers.Mirror], None]) -> None:
        for mirror in [*self.mirrors]:
            try:
                call(mirror)
            except Exception as error:  # a tracker may fail in any way; the record continues
                self.mirrors.remove(mirror)
                why = f"{trackers.NAMES[mirror.name]} failed ({first_line(error)})"
                self.say(f"{why}; the run continues without it, metrics.jsonl has everything")


def _cut(path: Path, step: int) -> tuple[TextIO, list[dict]]:
    """Drop the events after `step` from `path`; returns the file, open for appending, and the events it keeps."""
    kept = [event for event in read_metrics(path) if event["step"] <= step]
    write_atomically(path, "".join(json.dumps(event) + "\n" for event in kept).encode())
    return open(path, "a"), kept
