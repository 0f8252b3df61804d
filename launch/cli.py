"""A recipe's `main` signature becomes its command line, its configuration and the name of its run folder.

`cli(main)` is all that a recipe calls. It parses the command line (tyro), starts the `Run`, calls `main(run, **options)` and
turns every expected failure into one line and an exit code (launch/errors.py). Parallelism and precision are accelerate's
business: they come from `accelerate launch`, never from here.
"""

import contextlib
import copy
import ctypes
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import filelock
import torch
import torch.distributed
import tyro
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.utils import broadcast_object_list

from . import page, sources
from .checkpoint import write_atomically
from .data import Images
from .errors import Refused, first_line
from .runs import FORMAT, describe, read_json, stages
from .track import complain

START_SECONDS = 1800  # that a process waits for another before the first step: compilation, and data on a slow disk
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
    """Use torch.compile: other rounding, so another run."""

    # What `start` finds out; not flags.
    recipe: str = field(init=False, default="")
    config: dict = field(init=False, default_factory=dict)
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
        self.accelerator = _accelerator()
        self.configure(recipe, options, self.accelerator.mixed_precision)
        self.world, self.rank = self.accelerator.num_processes, self.accelerator.process_index
        torch.set_num_threads(self.threads or max(1, _cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
        _keep_freed_memory()
        self.folder, self.shards, result = self.on_main(self.find_folder)
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
        if not 0 <= self.seed < 2**63:
            raise Refused(f"--seed must be from 0 to 2**63 - 1, it is {self.seed}", 2)
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
            "precision": precision,
        }

    def find_folder(self) -> tuple[Path, int, dict | None]:
        """The run folder, its number of slices and, if the run is finished, its result. Writes nothing; main process only."""
        text = json.dumps(self.config, sort_keys=True, default=str)
        short = hashlib.sha256(text.encode()).hexdigest()[:8]
        default = Path("runs") / self.recipe / f"{self.config.get('net', self.recipe)}-{short}"
        folder = self.out or default
        beside = [folder]  # what --fresh made: name, name-2, name-3, …
        while beside[-1].exists():
            beside.append(folder.with_name(f"{folder.name}-{len(beside) + 1}"))
        if self.fresh:
            folder = beside[-1]
        elif self.out is None and len(beside) > 1:
            folder = beside[-2]
        if folder.exists() and not folder.is_dir():
            raise Refused(f"--out {folder} is a file", 4)
        recorded = read_json(folder / "config.json")
        if recorded is None:
            if folder.exists() and any(path.name not in ("lock", "lock.pid") for path in folder.glob("[!.]*")):
                raise Refused(f"{folder} is not empty and not a run folder; choose another with --out", 4)
            return folder, self.shards or self.world, None
        if recorded.get("format") != FORMAT:
            raise Refused(f"{folder} was written by another version of oneloop (format {recorded.get('format')})", 4)
        # Slices left open (0) are those that the run began with, whatever was said then.
        wanted = json.loads(text) | {"shards": self.shards or recorded["shards"]}
        if differences := _differences(recorded["config"] | {"shards": recorded["shards"]}, wanted):
            raise Refused(
                f"{folder} belongs to another configuration: {'; '.join(differences)}. "
                "Repeat its command to continue it, or choose another --out, or --fresh",
                4,
            )
        return folder, recorded["shards"], read_json(folder / "result.json")

    def open(self, images: Images, facts: dict) -> None:
        """Take the run folder for this run and write config.json; refuse one in use, or made from other data.

        Collective: every process calls it. `facts` are further entries of config.json. Raises Refused.
        """
        if not self.opened:  # a further stage finds it so
            self.on_main(lambda: self._open(images, facts))
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

    def _open(self, images: Images, facts: dict) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        holder = self.folder / "lock.pid"
        self.lock = filelock.FileLock(self.folder / "lock", timeout=1)  # s: `oneloop runs` may look at it
        try:
            self.lock.acquire()  # the system gives it back, however this process ends
        except filelock.Timeout:
            pid = holder.read_text() if holder.exists() else "unknown"
            raise Refused(f"{self.folder} is in use by process {pid}; wait for it, or use --out or --fresh", 5) from None
        holder.write_text(str(os.getpid()))
        (self.folder / "stopped.json").unlink(missing_ok=True)
        recorded = read_json(self.folder / "config.json")
        if recorded is None:
            recorded = {
                "format": FORMAT,
                "config": self.config,
                "recipe_file": str(Path(sys.argv[0]).resolve()),
                "shards": self.shards,
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
            recorded["resumed"].append(self._environment())
        write_atomically(self.folder / "config.json", json.dumps(recorded, indent=1, default=str).encode())

    def _environment(self) -> dict:
        device = self.accelerator.device
        return {
            "command": shlex.join(sys.argv),
            "git": _git_revision(),
            "versions": {name: _version(name) for name in LIBRARIES} | {"python": platform.python_version()},
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "world_size": self.world,
            "threads": torch.get_num_threads(),
            "precision": self.accelerator.mixed_precision,
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
        if self.accelerator:
            self.accelerator.free_memory()  # collects DDP, which holds the process group
            self.accelerator.end_training()
            self.accelerator = None


def parse(main: Callable[..., Any], args: Sequence[str] | None = None, prog: str | None = None) -> tuple[Run, dict[str, Any]]:
    """The Run, not started, and the options that `args` (None: the command line) give for `main(run: Run, …)`.

    Exits with 0 after printing the help, with 2 after saying what is wrong. `prog` is the command's name in both.
    """

    @functools.wraps(main)
    def options(run, **chosen):
        return run, chosen

    title, _, header = (sys.modules[main.__module__].__doc__ or "").partition("\n")
    return tyro.cli(
        options,
        args=args,
        prog=prog,
        description=title + "\n\n" + "\n".join(f" {line}" for line in header.strip().splitlines()),  # a space keeps the lines
        console_outputs=int(os.environ.get("RANK", 0)) == 0,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
    )


def cli(main: Callable[..., Any]) -> None:
    """Make a command of `main(run: Run, …)`: its further parameters are the recipe's options, with the chapter's defaults."""
    module = sys.modules[main.__module__]
    run, chosen = parse(main)
    _follow_launcher()
    code = 0
    try:
        result = run.start(Path(module.__file__).stem, chosen)
        if result is None:
            main(run, **chosen)
        elif run.rank == 0:
            print(f"finished before: {describe(result)}\n{run.folder}")
    except Refused as error:
        code = error.code
        run.stopped(code, str(error))
        # Once on each machine, as the data may lack on one of them; from every process where each has trials of its own.
        if not error.said and (run.divided or int(os.environ.get("LOCAL_RANK", 0)) == 0):
            complain(str(error))
    except KeyboardInterrupt:
        code = 130
        run.stopped(code, "interrupted")
        if int(os.environ.get("RANK", 0)) == 0:
            complain("interrupted; what was saved before is sound, and the same command goes on from it")
    except Exception as error:
        run.stopped(1, first_line(error))
        raise
    run.end()
    if code:
        sys.exit(code)


def _follow_launcher() -> None:
    """Let the death of the launcher, if there is one, be a SIGTERM to this process, which would else live on with the run folder.

    torch's launcher gives its processes sessions of their own, so that what kills its group misses them; accelerate's for one
    process does not pass signals on.
    """
    if not {"ACCELERATE_DYNAMO_BACKEND", "TORCHELASTIC_RUN_ID"} & os.environ.keys():
        return
    launcher, adopted = os.getppid(), _adopted()

    def watch() -> None:
        while os.getppid() == launcher and not adopted:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _adopted() -> bool:
    """Whether the launcher died during the imports: process 1 is the parent, and no launcher, as it may be in a container."""
    try:
        return os.getppid() == 1 and not os.path.samefile("/proc/1/exe", sys.executable)
    except OSError:  # not ours to see, or no Linux
        return True


def _accelerator(precision: str | None = None) -> Accelerator:
    """The Accelerator, or Refused where a launcher's settings do not give what they seem to. `precision` None: the launcher's."""
    env = os.environ
    if "MASTER_ADDR" in env and "WORLD_SIZE" not in env:
        raise Refused(
            "accelerate was told to start several processes and started one (--cpu and MULTI_CPU do that); "
            "use accelerate launch --config_file launch/cpus.yaml",
            2,
        )
    world = int(env.get("WORLD_SIZE", 1))
    if world > 1 and (missing := [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in env]):
        raise Refused(
            f"WORLD_SIZE is {world} but {', '.join(missing)} is not set: each process would believe to be alone; "
            "use accelerate launch --config_file launch/cpus.yaml (or launch/gpus.yaml)",
            2,
        )
    for name in ("DEEPSPEED", "FSDP", "MEGATRON_LM"):
        if env.get(f"ACCELERATE_USE_{name}", "").lower() == "true":
            raise Refused(f"ACCELERATE_USE_{name} is set; the loop knows one process, or DDP", 2)
    if env.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1") != "1":
        raise Refused("ACCELERATE_GRADIENT_ACCUMULATION_STEPS is not recorded with the run; use the recipe's --shards", 2)
    if (wanted := env.get("ACCELERATE_MIXED_PRECISION", "no")) not in ("no", "fp16", "bf16"):
        raise Refused(f"--mixed_precision is no, fp16 or bf16 here, not {wanted}", 2)
    if env.get("ACCELERATE_DYNAMO_BACKEND", "NO") != "NO":
        raise Refused("accelerate's dynamo_backend is not recorded with the run; use the recipe's --compile", 2)
    if int(env.get("TORCHELASTIC_MAX_RESTARTS", 0)) and env.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        # Processes that start again would find the dead ones' addresses in the store (pytorch/pytorch#135712).
        raise Refused(
            "restarts need a store of their own: TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in the environment and --rdzv_backend "
            "c10d, as launch/elastic.yaml says",
            2,
        )
    on_cpu = not torch.accelerator.is_available() or env.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    if env.get("ACCELERATE_MIXED_PRECISION") == "fp16" and on_cpu:
        raise Refused("fp16 needs a GPU; on a CPU use --mixed_precision bf16 or no", 2)
    accelerator = Accelerator(
        cpu=on_cpu,
        mixed_precision=precision,
        log_with="wandb",
        # Buffers: batch norm's statistics follow slice 0, see loop.py; DDP's own broadcast would depend on the placement.
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
            InitProcessGroupKwargs(timeout=timedelta(seconds=START_SECONDS)),
        ],
    )
    if world != accelerator.num_processes:
        raise Refused(
            f"{world} processes were started and each believes to be one of {accelerator.num_processes}; "
            "use accelerate launch --config_file launch/cpus.yaml (or launch/gpus.yaml)",
            2,
        )
    return accelerator


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _keep_freed_memory() -> None:
    """Tell glibc to keep freed blocks up to 32 MiB instead of giving each activation back to the system and faulting it in anew.

    Measured on a 2-core CPU: a step of `Net` with 64 images takes about two thirds of the time. Elsewhere a no-op.
    """
    if platform.libc_ver()[0] == "glibc":
        m_mmap_threshold, m_trim_threshold = -3, -1
        with contextlib.suppress(AttributeError, OSError):
            libc = ctypes.CDLL(None)
            libc.mallopt(m_mmap_threshold, 32 << 20)
            libc.mallopt(m_trim_threshold, 1 << 30)


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
