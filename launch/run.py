"""A run: its flags, its configuration, its folder and its place among the processes."""

import contextlib
import copy
import glob
import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import filelock
import torch
import torch.distributed
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from . import code
from .checkpoint import write_atomically
from .data import Images, sources
from .errors import Refused, first_line
from .processes import START_SECONDS, accelerator, cores, keep_freed_memory, set_timeout, use_deterministic_kernels
from .record import page
from .record.runs import FORMAT, describe, last_launch, read_json, stages
from .screen import complain
from .weights import public_address

LIBRARIES = ("oneloop", "torch", "torchvision", "accelerate", "datasets", "wandb")


@dataclass
class Run:
    """The flags that every recipe has. Processes and precision are `accelerate launch`'s: --config_file launch/*.yaml."""

    data: str = "hub"
    """hub, synthetic, or the path of a folder that `datasets` can read (parquet as on the hub, or an image folder)."""
    limit: int = 0
    """Training images to use; 0: all."""
    seed: int = 1
    """Of the first weights, the order of the images and dropout."""
    out: Path | None = None
    """The run folder; default runs/<recipe>/<net>-<hash of the configuration>, so the same command continues the same run."""
    fresh: bool = False
    """Start anew in a folder beside the existing one."""
    shards: int = 0
    """Slices of each batch, the unit that a process works on; 0: as many as processes. A run keeps the number it began with."""
    threads: int = 0
    """CPU threads of each process; 0: the machine's cores divided among its processes."""
    save_every: int = 0
    """Steps between checkpoints; 0: one at the end of each epoch."""
    eval_every: int = 1
    """Epochs between evaluations; the last epoch always has one."""
    log_every: int = 0
    """Steps between train lines; 0: one at the end of each epoch."""
    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto: WANDB_MODE if set, else online with a key and offline without."""
    wandb_artifacts: bool = False
    """Upload the best and the last weights to W&B, as versions of one artifact."""
    compile: bool = False
    """Use torch.compile. Changes rounding, so it counts as a different run."""
    deterministic: bool = False
    """Use only GPU kernels that repeat themselves: exact resume on a GPU, at a price. Counts as a different run."""
    accept_edit: bool = False
    """Resume although the recipe or a net was edited since the run began; the edit is recorded."""

    # What `start` finds out; not flags.
    recipe: str = field(init=False, default="")
    config: dict = field(init=False, default_factory=dict)
    code: dict[str, str] = field(init=False, default_factory=dict)  # the recipe and its modules, see launch/code.py
    notes: list[str] = field(init=False, default_factory=list)  # what the user is told when the training starts
    folder: Path = field(init=False, default=Path())
    accelerator: Accelerator = field(init=False, repr=False, default=None)
    lock: filelock.FileLock | None = field(init=False, repr=False, default=None)
    world: int = field(init=False, default=1)  # processes that share this run's batches
    rank: int = field(init=False, default=0)  # this one among them; 0 is the main process
    opened: bool = field(init=False, default=False)
    quiet: bool = field(init=False, default=False)  # no lines on the screen
    divided: bool = field(init=False, default=False)  # each process has trials of its own

    def start(self, recipe: str, options: dict[str, Any]) -> dict | None:
        """Find this process's place among the others, the run folder and what is in it.

        Returns the recorded result if the run is finished. Collective: every process calls it. Raises Refused.
        """
        self.accelerator = accelerator()
        if self.deterministic:
            use_deterministic_kernels()
        self.configure(recipe, options, self.accelerator.mixed_precision)
        self.world, self.rank = self.accelerator.num_processes, self.accelerator.process_index
        torch.set_num_threads(self.threads or max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
        keep_freed_memory()
        (self.folder, self.shards, result), self.config["data"] = self.on_main(lambda: (self.find_folder(), self.config["data"]))
        if result is None and self.shards % self.world:
            fit = [str(number) for number in range(1, self.shards + 1) if self.shards % number == 0]
            raise Refused(
                f"{self.folder} works in {self.shards} slices, which {self.world} processes cannot share "
                f"evenly; {', '.join(fit)} can. --shards N with --fresh starts a run with other slices",
                4,
            )
        torch.manual_seed(self.seed)
        return result

    def configure(self, recipe: str, options: dict[str, Any], precision: str) -> None:
        """Check the flags, and set `config`, which names the run folder. Raises Refused (2)."""
        for name, least in {"limit": 0, "shards": 0, "threads": 0, "save_every": 0, "eval_every": 1, "log_every": 0}.items():
            if getattr(self, name) < least:
                raise Refused(f"--{name.replace('_', '-')} must be at least {least}, it is {getattr(self, name)}", 2)
        for name, value in options.items():
            if isinstance(value, int | float) and not value >= 0:
                raise Refused(f"--{name.replace('_', '-')} must not be negative, it is {value}", 2)
        if self.threads > (most := max(64, 4 * cores())):
            raise Refused(f"--threads is {self.threads}; this machine takes {most} at most", 2)
        if not 0 <= self.seed < 2**63:
            raise Refused(f"--seed must be from 0 to 2**63 - 1, it is {self.seed}", 2)
        options = {name: public_address(value) if isinstance(value, str) else value for name, value in options.items()}
        self.recipe = recipe
        self.data = sources.located(self.data)
        # All that changes the numbers, and nothing else. Processes, threads, cadences and W&B do not.
        self.config = {
            "recipe": recipe,
            **options,
            "data": self.data,
            "limit": self.limit,
            "seed": self.seed,
            "shards": self.shards,
            "compile": self.compile,
            **({"deterministic": True} if self.deterministic else {}),  # absent, as in the runs from before this flag
            "precision": precision,
        }

    def find_folder(self) -> tuple[Path, int, dict | None]:
        """The run folder, its number of slices and, if the run is finished, its result. Writes nothing; main process only."""
        text = json.dumps(self.config, sort_keys=True, default=str)
        short = hashlib.sha256(text.encode()).hexdigest()[:8]
        folder = self.out or Path("runs") / self.recipe / f"{self.config.get('net', self.recipe)}-{short}"
        if not folder.name and not (folder := folder.resolve()).name:
            raise Refused("--out / is no folder for a run; name one inside it", 2)
        numbers = _fresh_numbers(folder)  # of name, name-2, name-3, …: what --fresh made
        if self.fresh and numbers:
            folder = folder.with_name(f"{folder.name}-{numbers[-1] + 1}")
        elif self.out is None and numbers and numbers[-1] > 1:
            folder = folder.with_name(f"{folder.name}-{numbers[-1]}")
        if folder.exists() and not folder.is_dir():
            raise Refused(f"--out {folder} is a file", 4)
        recorded = read_json(folder / "config.json")
        if recorded is None:
            begun = ("lock", "lock.pid", "stopped.json", code.FOLDER)  # what an early end leaves, before config.json is there
            if folder.exists() and any(path.name not in begun for path in folder.glob("[!.]*")):
                raise Refused(f"{folder} is not empty and not a run folder; choose another with --out", 4)
            return folder, self.shards or self.world, None
        if recorded.get("format") != FORMAT:
            raise Refused(f"{folder} was written by another version of oneloop (format {recorded.get('format')})", 4)
        # Slices left open (0) are those that the run began with, whatever was said then.
        wanted = json.loads(text) | {"shards": self.shards or recorded["shards"]}
        had = recorded["config"] | {"shards": recorded["shards"]}
        moved = wanted["data"] != had["data"] and not {wanted["data"], had["data"]} & {"hub", "synthetic"}
        if moved:  # the data's fingerprint says whether they are the same; it is compared when they are there
            wanted["data"] = self.config["data"] = had["data"]
        if differences := _differences(had, wanted):
            longer = self.config.keys() & {"epochs"} and {line.split()[0] for line in differences} == {"epochs"}
            way = "Give a folder beside it: more epochs start from its last checkpoint" if longer else "Choose another --out"
            raise Refused(
                f"{folder} belongs to another configuration: {'; '.join(differences)}. {way}, repeat its command to resume it, "
                "or start anew with --fresh",
                4,
            )
        result, names = read_json(folder / "result.json"), code.edited(folder, recorded.get("code", []), self.code)
        if names and (result or not self.accept_edit):
            resume = "" if result else ", or resume with the new code by --accept-edit, which records it"
            raise Refused(
                f"{', '.join(names)} changed since {folder} was trained: its numbers come from other code. Undo the edit, or "
                f"start anew with --fresh{resume}",
                4,
            )
        return folder, recorded["shards"], None if moved else result

    def open(self, images: Images, facts: dict) -> None:
        """Take the run folder for this run and write config.json; refuse one in use, or made from other data.

        Collective: every process calls it. `facts` are further entries of config.json. Raises Refused.
        """
        if not self.opened:  # a further stage finds it so
            self.folder, self.notes, self.config["data"] = self.on_main(lambda: self._open(images, facts))
            self.opened = True

    def stage(self, name: str) -> "Run":
        """This run, with the folder `name` inside its own. Collective."""
        inner = copy.copy(self)
        inner.folder = self.folder / name
        inner.on_main(lambda: inner.folder.mkdir(parents=True, exist_ok=True))
        return inner

    def alone(self) -> "Run":
        """This run as if on one process, one slice a batch: for trials that are divided among processes, each whole."""
        self.divided = True
        inner = copy.copy(self)
        inner.world, inner.rank, inner.shards, inner.quiet, inner.wandb = 1, 0, 1, True, "disabled"
        return inner

    def finish(self, result: dict) -> None:
        """Record `result` as the whole run's: for recipes of several stages; `train` without a stage does it itself."""
        self.on_main(lambda: write_atomically(self.folder / "result.json", json.dumps(result, indent=1).encode()))
        if self.rank == 0 and stages(self.folder):
            try:
                page.write(self.folder, result)
            except Exception as error:  # the run is finished and recorded: a page cannot undo that
                complain(f"{self.folder} has no report.html: {first_line(error)}")

    def _open(self, images: Images, facts: dict) -> tuple[Path, list[str], str]:
        if self.out is None and not self.fresh and not (self.folder / "config.json").exists():
            self.folder = self._same_data_elsewhere(images) or self.folder
        self.folder.mkdir(parents=True, exist_ok=True)
        holder = self.folder / "lock.pid"
        self.lock = filelock.FileLock(self.folder / "lock", timeout=1)  # s: `oneloop runs` may look at it
        try:
            self.lock.acquire()  # the system gives it back, however this process ends
        except filelock.Timeout:
            pid = holder.read_text() if holder.exists() else "unknown"
            raise Refused(f"{self.folder} is in use by process {pid}; wait for it, or use --out or --fresh", 5) from None
        write_atomically(holder, str(os.getpid()).encode())  # not through a link that somebody left there
        (self.folder / "stopped.json").unlink(missing_ok=True)
        notes: list[str] = []
        recorded = read_json(self.folder / "config.json")
        if recorded is None:
            recorded = {
                "format": FORMAT,
                "config": self.config,
                "recipe_file": str(Path(sys.argv[0]).resolve()),
                "shards": self.shards,
                "code": [],
                **facts,
                **self._environment(),
                "data": {
                    "source": images.source,
                    "fingerprint": images.fingerprint,
                    "train": len(images.train),
                    "test": len(images.test),
                    "classes": images.classes,
                    "mean": images.mean,
                    "std": images.std,
                },
                "resumed": [],
            }
        elif recorded["data"]["fingerprint"] != images.fingerprint:
            raise Refused(
                f"{self.folder} was trained on other data: {recorded['data']['source']} sha256 "
                f"{recorded['data']['fingerprint'][:16]}, now {images.source} {images.fingerprint[:16]}. --fresh starts anew",
                4,
            )
        else:
            before, now = last_launch(recorded)["versions"], self._environment()
            for name in [name for name in LIBRARIES if before.get(name) != now["versions"][name]]:
                notes.append(f"{name} is {now['versions'][name]}, and was {before.get(name)}: the bits may differ from here on")
            recorded["resumed"].append(now)
        copies = recorded.setdefault("code", [])
        names = code.edited(self.folder, copies, self.code)
        if self.code and (names or not copies):
            copies.append(code.digests(self.code))
            code.keep(self.folder, len(copies), self.code)
            if names:
                place = self.folder / code.FOLDER / str(len(copies))
                notes.append(f"{', '.join(names)} changed; the new code is kept in {place}")
        write_atomically(self.folder / "config.json", json.dumps(recorded, indent=1, default=str).encode())
        return self.folder, notes, self.config["data"]

    def _same_data_elsewhere(self, images: Images) -> Path | None:
        """The run beside the default folder that differs in the path of its data alone: moved, as their sha256 says."""
        found = []
        for path in self.folder.parent.glob("*/config.json") if self.config["data"] not in ("hub", "synthetic") else ():
            with contextlib.suppress(Refused, OSError, AttributeError, KeyError, TypeError):  # not a run that can be read
                recorded = read_json(path)
                same_pixels = recorded["data"]["fingerprint"] == images.fingerprint
                had = recorded["config"] | {"data": self.config["data"]}
                elsewhere = recorded["config"]["data"] not in ("hub", "synthetic", self.config["data"])
                same_code = not code.edited(path.parent, recorded.get("code", []), self.code)
                alike = same_pixels and elsewhere and same_code and recorded["shards"] == self.shards
                if alike and not _differences(had, json.loads(json.dumps(self.config, default=str))):
                    found.append((path.stat().st_mtime_ns, path.parent, recorded["config"]["data"]))
        if not found:
            return None
        _, folder, self.config["data"] = max(found)  # the newest, as of name, name-2, …
        return folder

    def _environment(self) -> dict:
        device = self.accelerator.device
        return {
            "command": shlex.join(_without_secrets(sys.argv)),
            "git": _git_revision(),
            "versions": {name: _version(name) for name in LIBRARIES} | {"python": platform.python_version()},
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "world_size": self.world,
            "threads": torch.get_num_threads(),
            "precision": self.accelerator.mixed_precision,
            "tf32": torch.backends.cudnn.allow_tf32,
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }

    def on_main(self, action: Callable[[], Any]) -> Any:
        """What `action()` returns or raises on the main process, on every process. Collective: one broadcast.

        An OSError (disk full, no permission) becomes Refused.
        """
        outcome: list[Any] = [None, None]
        if self.rank == 0:
            try:
                outcome[0] = action()
            except Refused as error:
                outcome[1] = error
            except OSError as error:
                outcome[1] = Refused(f"cannot write {error.filename or self.folder}: {error.strerror or error}")
        if self.world > 1:
            broadcast_object_list(outcome)  # collective
        if outcome[1]:
            raise outcome[1]
        return outcome[0]

    def wait_for_everyone(self, days: float) -> None:
        """Wait until every process is here, for so long at most; one that dies ends the waiting. Collective."""
        if self.accelerator.num_processes > 1:
            set_timeout(timedelta(days=days))
            torch.distributed.barrier()  # collective
            set_timeout(timedelta(seconds=START_SECONDS))

    def say_finished(self, result: dict) -> None:
        """What an earlier launch has recorded, on the main process's screen."""
        if self.rank == 0:
            print(f"finished before: {describe(result)}\n{self.folder}")

    def stopped(self, code: int, why: str) -> None:
        """Record why this launch ends before the run is finished. Nothing is said if that cannot be written."""
        if self.lock and self.lock.is_locked:
            with contextlib.suppress(OSError):
                write_atomically(self.folder / "stopped.json", json.dumps({"code": code, "why": why}).encode())

    def end(self) -> None:
        """Leave the run folder and the other processes."""
        if self.lock and self.lock.is_locked:
            (self.folder / "lock.pid").unlink(missing_ok=True)
            self.lock.release()
        if self.deterministic:
            torch.use_deterministic_algorithms(False)
        if self.accelerator:
            self.accelerator.free_memory()  # collects DDP, which holds the process group
            self.accelerator.end_training()
            self.accelerator = None


def _fresh_numbers(folder: Path) -> list[int]:
    """Which of name (1), name-2, name-3, … are there, sorted."""
    found = [1] if folder.exists() else []
    for path in folder.parent.glob(f"{glob.escape(folder.name)}-*"):
        number = path.name.removeprefix(f"{folder.name}-")
        found += [int(number)] if number.isdecimal() and int(number) > 1 else []
    return sorted(found)


def _without_secrets(words: Sequence[str]) -> list[str]:
    """A command line, its addresses without what may be secret."""
    parts = (word.partition("=") if word.startswith("--") else ("", "", word) for word in words)
    return [flag + joint + public_address(value) for flag, joint, value in parts]


def _differences(recorded: dict, wanted: dict) -> list[str]:
    """How two configurations differ, a line for each key."""
    missing = object()
    return [
        f"{key} was {recorded.get(key, 'absent')!r}, now {wanted.get(key, 'absent')!r}"
        for key in sorted(recorded.keys() | wanted.keys())
        if recorded.get(key, missing) != wanted.get(key, missing)
    ]


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _git_revision() -> str:
    here = Path(sys.argv[0]).resolve().parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
