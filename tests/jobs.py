"""Real processes without the wait: forked from one that has imported torch, launched by torch's own elastic agent.

A fresh process spends about five seconds on imports. These are forked from multiprocessing's fork server, which has done that
once; then they run a recipe's file as `python` would, alone or as workers of the agent that accelerate and torchrun start.
"""

import ctypes
import functools
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import chaos
import pytest
import torch.distributed.run
import warm
from torch.distributed.launcher.api import elastic_launch
from torch.multiprocessing import _prctl_pr_set_pdeathsig
from torch.multiprocessing.spawn import ProcessContext

import launch.report.show
import launch.training.job


@dataclass
class Job:
    """One launch: `pid` is that of the launcher, or of the only process, and of its process group."""

    process: BaseProcess
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def output(self) -> str:
        return self.log.read_text()

    def running(self) -> bool:
        return self.process.is_alive()

    def wait(self, seconds: float = 120) -> int:
        """The exit code, -N after signal N; fails if the job, or any process that it left, lives on after `seconds`."""
        try:
            self.process.join(seconds)
            assert not self.running(), f"still running after {seconds} s:\n{self.output}"
            wait_for(lambda: gone(self.pid), 10)
        finally:
            if not gone(self.pid):
                os.killpg(self.pid, signal.SIGKILL)
        return self.process.exitcode


def begin(*args, processes: int | None = None, agent: tuple = (), **place) -> Job:
    """Start `args`: chaos' flags, a recipe's file, its flags; `place` as for `_start`.

    `processes` None is plain python; `agent` are torchrun's flags.
    """
    return _start(_recipe, [str(arg) for arg in args], processes, [*map(str, agent)], **place)


def python(*args, **place) -> Job:
    """Start `python ARGS`, see warm.py: launchers, and what they launch, are forked too; `place` as for `_start`."""
    return _start(_python, [str(arg) for arg in args], **place)


def run(*args, timeout: float = 120, **place) -> subprocess.CompletedProcess:
    """Run `python` to its end, as subprocess.run([sys.executable, *args], capture_output=True, text=True, check=False) does."""
    with tempfile.TemporaryDirectory() as folder:
        log, errors = Path(folder) / "out", Path(folder) / "err"
        code = python(*args, log=log, errors=errors, **place).wait(timeout)
        return subprocess.CompletedProcess(args, code, log.read_text(), errors.read_text())


def _start(
    action: Callable[..., int | None], *args, cwd: Path, env: dict | None = None, log: Path | None = None,
    errors: Path | None = None, network: str = "", plots: bool = False,
) -> Job:  # fmt: skip
    """Have a forked process do `action(*args)` in the folder `cwd`.

    `network` names a network namespace to live in. What is said goes to `log`, on standard error to `errors` if that is given.
    None in `env` unsets. Without the `plots` of a finished run, which few tests look at, it takes a second less.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["jobs", "preloaded"])
    with pytest.MonkeyPatch.context() as patch:
        here = Path(__file__).parent  # Python 3.11's fork server does not know our sys.path
        patch.setenv("PYTHONPATH", os.pathsep.join((str(here), str(here.parent))))
        multiprocessing.forkserver.ensure_running()
    log = log or cwd / f"log-{time.monotonic_ns()}"
    environment = {name: value for name, value in (os.environ | (env or {})).items() if value is not None}
    process = context.Process(
        target=_become,
        args=(action, args, environment, cwd, log, errors or log, network, plots),
    )
    process.start()
    wait_for(lambda: log.exists())
    return Job(process, log)


def _become(
    action: Callable[..., int | None], args: tuple, env: dict, cwd: Path, log: Path, errors: Path, network: str, plots: bool
) -> None:
    os.setsid()
    if network:
        with open(f"/run/netns/{network}") as place:
            assert ctypes.CDLL(None).setns(place.fileno(), 0) == 0
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    for stream, path in ((2, errors), (1, log)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    launch.training.job.SAVE_SECONDS = 0  # as in conftest.py
    if not plots:
        launch.report.show.show = lambda *_: None
    sys.exit(action(*args))


def _recipe(args: list[str], processes: int | None, agent: list[str]) -> None:
    if processes is None:
        return _work(args)
    free = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "--local-addr", "127.0.0.1"]
    flags = ["--nproc-per-node", str(processes), *(agent if "--rdzv-endpoint" in agent else free + agent)]
    config, _, _ = torch.distributed.run.config_from_args(torch.distributed.run.parse_args([*flags, "none"]))
    config.start_method = "fork"
    join = ProcessContext.join  # with half a minute's grace for the other workers when one has failed
    ProcessContext.join = functools.partialmethod(join, grace_period=5)
    elastic_launch(config, _work)(args)
    return None


def _python(args: list[str]) -> int:
    warm.as_started()
    return warm.run(args)


def _work(args: list[str]) -> None:
    warm.as_started()
    _prctl_pr_set_pdeathsig(0)  # torch's own forks end with their parent; a launcher's commands must notice by themselves
    chaos.main(args)


def wait_for(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def gone(group: int) -> bool:
    """Return whether no process of the group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False
