"""A run: its flags, its configuration, its folder and its place among the processes."""

import contextlib
import copy
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import filelock
import torch
import torch.distributed
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from .console import complain, say
from .data.images import Images, with_validation
from .environment import environment
from .errors import Finished, Refused, first_line, public_address
from .files import write_atomically
from .flag_checks import check_flags
from .folder import RunFolder, check_data, find_folder, lock_folder, record_launch, same_data_beside
from .memory import keep_freed_memory
from .old_names import options_to_hash
from .option_groups import apart
from .processes import (
    START_SECONDS,
    accelerator,
    any_process,
    cores,
    end_with_launcher,
    set_timeout,
    use_deterministic_kernels,
)
from .report import page
from .report.runs import describe, recorded_json, stages
from .sources import named
from .sources.options import as_recorded
from .stop import StopWhen
from .weights import Source, read
from .weights.tensors import weights_sha256


@dataclass
class Run:
    """The flags that every recipe has. Processes and precision are `accelerate launch`'s: --config_file launch/*.yaml."""

    data: str = "hub"
    """hub, synthetic, or the path of a folder that `datasets` can read (parquet as on the hub, or an image folder)."""
    limit: int = 0
    """Number of training images to use; 0: all."""
    validation: float | None = None
    """Fraction of the training images that chooses the best weights; the test images are then measured at the end only. 0: the
    test images choose. Default: 0; for your own images (recipes/custom.py), if they are not split, a tenth."""
    seed: int = 1
    """Random seed: weight init, data order, dropout, augmentation."""
    out: Path | None = None
    """The run folder; default runs/<recipe>/<net>-<hash of the configuration>, so the same command resumes the same run."""
    fresh: bool = False
    """Start over in a new folder beside the existing one."""
    micro_batches: int = 0
    """Micro-batches that each batch is cut into and processes share; 0: one per process. A run keeps its number."""
    threads: int = 0
    """CPU threads per process; 0: the machine's cores divided by its processes."""
    save_every: int = 0
    """Steps between checkpoints; 0: one at the end of an epoch, 30 s or more after the last one."""
    eval_every: int = 1
    """Epochs between evaluations; the last epoch always has one."""
    log_every: int = 0
    """Steps between train lines; 0: one at the end of each epoch."""
    max_seconds: int = 0
    """Save a checkpoint and end (exit code 75) after this many seconds of a launch, before a queue ends it; 0: no limit."""
    profile: bool = False
    """Trace a few steps: print where their time went, and write profile.json for https://ui.perfetto.dev in the run folder."""
    track: tuple[Literal["wandb", "tensorboard", "trackio", "mlflow", "none"], ...] = ("wandb",)
    """Where the curves go, one or several; none: only to the run folder, which has everything."""
    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto: WANDB_MODE if set, else online with an API key and offline without."""
    wandb_artifacts: bool = False
    """Upload the best and the last weights to W&B, as versions of one artifact."""
    compile: bool = False
    """Use torch.compile. Changes rounding, so it counts as a different run."""
    deterministic: bool = False
    """Use deterministic GPU kernels only: exact resume on a GPU, at a price in speed. Counts as a different run."""
    accept_edit: bool = False
    """Resume although the recipe or a net was edited since the run began; the edit is recorded."""

    # Set by `start`; not flags.
    recipe: str = field(init=False, default="")
    config: dict = field(init=False, default_factory=dict)
    code: dict[str, str] = field(init=False, default_factory=dict)  # the recipe and its modules, see launch/source_copy.py
    notes: list[str] = field(init=False, default_factory=list)  # what the user is told when the training starts
    folder: Path = field(init=False, default=Path())
    accelerator: Accelerator = field(init=False, repr=False, default=None)
    lock: filelock.FileLock | None = field(init=False, repr=False, default=None)
    world: int = field(init=False, default=1)  # processes that share this run's batches
    rank: int = field(init=False, default=0)  # this one among them; 0 is the main process
    opened: bool = field(init=False, default=False)
    finished: bool = field(init=False, default=False)  # only its data are compared: see `compare_data`
    white: int | None = field(init=False, default=None)  # recorded by the run that is there, see data.resize.ResizeRule
    loaded: list[str] = field(init=False, default_factory=list)  # sha256 of the weights that it begins with: see `load`
    classes: tuple[str, ...] = field(init=False, default=())  # of the run that launch/trained.py makes the net of
    trains: bool = field(init=False, default=True)  # False: the recipe is only asked what it would train, see launch/recipe.py
    quiet: bool = field(init=False, default=False)  # no lines on the screen
    separate_trials: bool = field(init=False, default=False)  # each process has trials of its own
    captured: bool = field(init=False, default=True)  # on a GPU: see launch/training/cuda_graph.py
    stop_when: StopWhen | None = field(init=False, repr=False, default=None)  # for programs and tests: see stop.Stop

    def start(self, recipe: str, options: dict[str, Any]) -> dict | None:
        """Find this process's place among the others, the run folder and what is in it.

        Returns the recorded result if the run is finished. Collective: every process calls it. Raises Refused.
        """
        self.accelerator, wanted = accelerator(), os.environ.get("ACCELERATE_MIXED_PRECISION", "")
        if self.deterministic:
            use_deterministic_kernels()
        self.configure(recipe, options, self.accelerator.mixed_precision)
        self.world, self.rank = self.accelerator.num_processes, self.accelerator.process_index
        if self.world > 1 and self.accelerator.device.type == "cpu":  # while it waits for a GPU, Python would not hear the signal
            end_with_launcher()
        self.use_threads()
        keep_freed_memory()
        result = self.take_folder(self.on_main(lambda: self.find_folder(wanted)))
        if result is None and self.micro_batches % self.world:
            fit = [str(number) for number in range(1, self.micro_batches + 1) if self.micro_batches % number == 0]
            raise Refused(
                f"{self.folder} cuts each batch into {self.micro_batches} micro-batches, which {self.world} processes cannot "
                "share evenly; "
                f"{', '.join(fit)} can. --micro-batches N with --fresh starts a new run with N micro-batches",
                4,
            )
        torch.manual_seed(self.seed)
        return result

    def use_threads(self) -> None:
        """Have torch use all the threads that are for this process."""
        torch.set_num_threads(self.threads or max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))

    def configure(self, recipe: str, options: dict[str, Any], precision: str) -> None:
        """Check the flags, and set `config`, which names the run folder. Raises Refused (2)."""
        options = apart(options)
        check_flags(self, options)
        options = {name: public_address(value) if isinstance(value, str) else value for name, value in options.items()}
        self.recipe = recipe
        self.data = named.located(self.data)
        # All that changes the numbers, and nothing else. Processes, threads, cadences and W&B do not.
        self.config = {
            "recipe": recipe,
            **options,
            "data": self.data,
            "limit": self.limit,
            "seed": self.seed,
            "micro_batches": self.micro_batches,
            "compile": self.compile,
            # Absent where they are off, as in the runs from before these flags.
            **({"deterministic": True} if self.deterministic else {}),
            # 0 differs from None where a recipe splits by itself: it has --test.
            **({"validation": self.validation} if self.validation or (self.validation == 0 and "test" in options) else {}),
            "precision": precision,
        }

    def find_folder(self, wanted: str = "") -> RunFolder:
        """The run's folder and what is in it, once it is configured. Writes nothing; main process only. Raises Refused.

        `wanted` is the precision that it was launched in, if that is not the one it has here.
        """
        flags = {"fresh": self.fresh, "accept_edit": self.accept_edit}
        found = find_folder(self.config, self.out, world=self.world, texts=self.code, **flags)
        if wanted not in ("", self.config["precision"]) and not (found.folder / "config.json").exists():
            # Another run must not begin where one that was begun elsewhere is to go on.
            same = find_folder(self.config | {"precision": wanted}, self.out, world=self.world, texts=self.code, **flags)
            if same.result:
                return same
            if (same.folder / "config.json").exists():
                raise Refused(
                    f"{same.folder} was begun in {wanted}, which this machine does not compute in: resume it on one that does; "
                    f"--fresh starts another run, in precision {self.config['precision']}",
                    4,
                )
        return found

    def take_folder(self, found: RunFolder) -> dict | None:
        """Take over what the folder says of the run; returns its result, if it is finished."""
        self.folder, self.micro_batches, self.config["data"], result, self.white = found
        return result

    def load(self, source: str | Path, sha256: str = "", average: bool = True) -> Source:
        """Weights to begin with, as `launch.weights.read`; a run whose source holds others by now is refused by `open`."""
        weights = read(source, sha256, average)
        self.loaded.append(weights_sha256(weights.tensors))
        return weights

    def compare_data(self, main: Callable[..., Any], options: dict[str, Any]) -> str:
        """Return whether this run, which is finished, has the data that `main(run, **options)` would train it on: until `open`.

        Returns why that cannot be said, if they are not there any more. Not collective. Raises Refused (4).
        """
        self.finished = True
        try:
            with contextlib.redirect_stdout(io.StringIO()), _optimizers_for_show():
                main(self, **as_recorded(options, self.white))
        except Finished:
            return ""
        except Refused as error:
            if error.code != 1:
                raise
            return str(error)
        return "its recipe opens no run folder"

    def open(self, images: Images, facts: dict) -> None:
        """Take the run folder for this run and write config.json; refuse one in use, or made from other data.

        Collective: every process calls it. `facts` are further entries of config.json. Raises Refused.
        """
        if self.finished:
            check_data(self.folder, recorded_json(self.folder / "config.json"), images, self.loaded)
            raise Finished
        if not self.opened:  # a further stage finds it so
            if self.world > 1:
                main = self.on_main(lambda: images.fingerprint)
                if any_process(images.fingerprint != main, self.world, self.accelerator.device):  # collective
                    raise Refused(
                        f"the processes see different images in {images.source}: it changed while they started, or differs from "
                        "machine to machine; run the command again once it is the same for all",
                        4,
                        everywhere=True,
                    )
            self.folder, self.notes, self.config["data"] = self.on_main(lambda: self._open(images, facts))
            self.opened = True

    def _open(self, images: Images, facts: dict) -> tuple[Path, list[str], str]:
        begins = self.out is None and not self.fresh and not (self.folder / "config.json").exists()
        if begins and (moved := same_data_beside(self.folder, self.config, self.micro_batches, images.fingerprint, self.code)):
            self.folder, self.config["data"] = moved
        self.lock = lock_folder(self.folder)
        launch = environment(self.accelerator, self.world)
        images = with_validation(images, self.validation)
        for name, content in images.files.items():
            write_atomically(self.folder / name, content)
        notes = record_launch(self.folder, self.config, self.micro_batches, self.code, images, facts, launch, self.loaded)
        return self.folder, notes, self.config["data"]

    def origin(self, fingerprint: str, **other: Any) -> str:
        """Origin of a checkpoint: sha256 of configuration, micro-batches and data, which are all that its numbers come from.

        `other` are options in place of this run's.
        """
        parts = self.config | {"seed": self.seed, "micro_batches": self.micro_batches, "fingerprint": fingerprint} | other
        return hashlib.sha256(json.dumps(options_to_hash(parts), sort_keys=True, default=str).encode()).hexdigest()

    def stage(self, name: str) -> "Run":
        """This run, with the folder `name` inside its own. Collective."""
        inner = copy.copy(self)
        inner.folder = self.folder / name
        inner.on_main(lambda: inner.folder.mkdir(parents=True, exist_ok=True))
        return inner

    def single_process(self) -> "Run":
        """This run as if on one process, one micro-batch a batch: for trials that each run on one of several processes."""
        self.separate_trials = True
        inner = copy.copy(self)
        inner.world, inner.rank, inner.micro_batches, inner.quiet, inner.wandb = 1, 0, 1, True, "disabled"
        inner.track = ("none",)
        return inner

    def finish(self, summary: str, **facts: Any) -> None:
        """Say `summary` and record it with the `facts` as the run's result: for recipes of several stages. Collective.

        `train` without a stage does it itself.
        """
        self.record({"recipe": self.recipe, "summary": summary} | facts)
        if self.rank == 0:
            say(summary)

    def record(self, result: dict) -> None:
        """Write `result` as the whole run's, the mark of a finished run. Collective."""
        self.on_main(lambda: write_atomically(self.folder / "result.json", json.dumps(result, indent=1).encode()))
        if self.rank == 0 and stages(self.folder):
            try:
                page.write(self.folder, result)
            except Exception as error:  # the run is finished and recorded: a page cannot undo that
                complain(f"{self.folder} has no report.html: {first_line(error)}")

    def on_main(self, action: Callable[[], Any]) -> Any:
        """Run `action` on the main process; every process gets its result, or raises its error. Collective: one broadcast.

        An OSError (disk full, no permission) becomes Refused.
        """
        outcome: list[Any] = [None, None]
        if self.rank == 0:
            try:
                outcome[0] = action()
            except Refused as error:
                outcome[1] = error
                error.everywhere = True
            except OSError as error:
                outcome[1] = Refused(f"cannot write {error.filename or self.folder}: {error.strerror or error}", everywhere=True)
        if self.world > 1:
            broadcast_object_list(outcome)  # collective
        if outcome[1]:
            raise outcome[1]
        return outcome[0]

    def wait_for_everyone(self, days: float) -> None:
        """Wait until every process is here, `days` at most; one that dies ends the waiting. Collective."""
        if self.accelerator.num_processes > 1:
            set_timeout(days * 24 * 3600)
            torch.distributed.barrier()  # collective
            set_timeout(START_SECONDS)

    def say_finished(self, result: dict, unknown: str = "") -> None:
        """Print, on the main process, what an earlier launch has recorded; `unknown`: why its data cannot be compared."""
        if self.rank == 0:
            say(f"already finished: {describe(result)}\n{self.folder}")
            if unknown:
                complain(f"its data cannot be compared with those that it was trained on: {unknown}")

    def stopped(self, code: int, why: str) -> None:
        """Record why this launch ends before the run is finished. Nothing is said if that cannot be written."""
        if self.lock and self.lock.is_locked:
            with contextlib.suppress(OSError):
                write_atomically(self.folder / "stopped.json", json.dumps({"code": code, "why": why}).encode())

    def leave(self) -> None:
        """Leave the run folder, for others to take."""
        if self.lock and self.lock.is_locked:
            (self.folder / "lock.pid").unlink(missing_ok=True)
            self.lock.release()

    def end(self) -> None:
        """Leave the run folder and the other processes."""
        self.leave()
        if self.deterministic:
            torch.use_deterministic_algorithms(False)
        if self.accelerator:
            self.accelerator.free_memory()  # collects DDP, which holds the process group
            self.accelerator.end_training()
            self.accelerator = None


@dataclass
class OwnRun(Run):
    """Run on your own data: `--data` is required."""

    data: str = field()
    """Required: a folder, a table, a data set of the hub (owner/name), or synthetic."""


@contextlib.contextmanager
def _optimizers_for_show() -> Iterator[None]:
    """Optimizers that make no step: without a second's import of torch's compiler, which is to keep off their methods."""
    optimizer, add = torch.optim.Optimizer, torch.optim.Optimizer.add_param_group
    try:
        optimizer.add_param_group = getattr(add, "__wrapped__", add)  # type: ignore[method-assign]
        yield
    finally:
        optimizer.add_param_group = add  # type: ignore[method-assign]
