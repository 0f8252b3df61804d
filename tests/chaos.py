"""Faults from outside: run a recipe with one fault, at one moment, on one of its processes.

    python tests/chaos.py --rank 1 --at step=7 --do SIGKILL -- recipes/cifar2.py --data synthetic --epochs 2

Steps and evaluations are those that `Run.stop_when` is asked at; for the others a public function is wrapped. A relaunch by
torch's elastic agent, in the same job, is left in peace.

--at   step=N: before step N of the run; import=N (of the recipe), start=N (finding the other processes), open=N (taking the run
       folder), check=N, store=N (images), features=N (keeping some), best=N (measuring the best weights), draw=N (the report),
       save=N: at the N-th call in this process, from 1; save=N.M: at the M-th fsync of the N-th save; evaluate=N: in the
       evaluation after step N
--do   signals to this process (SIGKILL, SIGSTOP, or several: SIGTERM,SIGTERM), LAUNCHER (SIGKILL to its parent), raise, ENOSPC,
       NAN (the first image of this process's next batch), or a command in one string
"""

import argparse
import errno
import functools
import itertools
import os
import runpy
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import launch.data.store
import launch.features.store
import launch.processes
import launch.sources.dataset_report
import launch.training.checkpoint
import launch.training.evaluate
import launch.training.finish
import launch.training.loop
from launch import Run
from launch.data.feed import MemoryFeed

SEAMS = {
    "import": (runpy, "run_path"),
    "start": (Run, "start"),
    "open": (Run, "open"),
    "save": (launch.training.checkpoint, "save"),
    "check": (launch.sources.dataset_report, "check"),
    "store": (launch.data.store.Store, "_write"),
    "features": (launch.features.store.FeatureStore, "add"),
    "best": (launch.training.evaluate, "best_weights"),
    "draw": (launch.training.finish, "_show"),
}


def strike(what: str) -> None:
    if what == "raise":
        raise ValueError("chaos")
    if what == "ENOSPC":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if what == "NAN":
        poison()
    elif what == "LAUNCHER":
        launcher = os.getppid()
        os.kill(launcher, signal.SIGKILL)
        while os.getppid() == launcher:
            time.sleep(0.01)
    elif " " in what:
        subprocess.run(shlex.split(what), check=True)
    else:
        for name in what.split(","):
            os.kill(os.getpid(), getattr(signal, name))


def poison() -> None:
    """The first image of the next batch, and ever after that image, has a pixel that is no number."""
    original, chosen = MemoryFeed.batch, []

    def batch(self, ids, augments=()):
        pixels, labels = original(self, ids, augments)
        chosen.extend(ids[:1].tolist() if not chosen else ())
        for row in (ids == chosen[0]).nonzero().flatten().tolist():
            pixels[row, 0, 0, 0] = torch.nan
        return pixels, labels

    MemoryFeed.batch = batch


def wrap(place: object, name: str, at: int, action: Callable[[], None]) -> None:
    """Have `action` called before call number `at` of `place.name`."""
    original, calls = getattr(place, name), itertools.count(1)

    def wrapped(*args, **options):
        if at == next(calls):
            action()
        return original(*args, **options)

    setattr(place, name, wrapped)


def main(args: Sequence[str]) -> None:
    parser = argparse.ArgumentParser("chaos")
    parser.add_argument("--rank", type=int, default=0)  # -1: any
    parser.add_argument("--at")
    parser.add_argument("--do")
    parser.add_argument("--silence", type=float, help="seconds, instead of the loop's own")
    parser.add_argument("recipe", nargs=argparse.REMAINDER)
    chosen = parser.parse_args(args)
    recipe = [part for part in chosen.recipe if part != "--"]
    if chosen.silence:
        launch.processes.SILENCE_SECONDS = chosen.silence
    here = chosen.rank in (-1, int(os.environ.get("RANK", 0))) and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    if chosen.at and here:
        seam, at = chosen.at.split("=")
        at, _, within = at.partition(".")
        action = functools.partial(strike, chosen.do)
        action = functools.partial(wrap, os, "fsync", int(within), action) if within else action
        if seam in SEAMS:
            wrap(*SEAMS[seam], int(at), action)
        else:  # before a step of this number, or in the evaluation after it
            moment = (int(at) - 1, None) if seam == "step" else (int(at), 0)
            Run.stop_when = staticmethod(lambda step, batch: (step, batch) == moment and action())
    sys.argv = recipe
    sys.path.insert(0, str(Path(recipe[0]).resolve().parent))
    runpy.run_path(recipe[0], run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
