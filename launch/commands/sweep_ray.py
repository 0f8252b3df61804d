"""`oneloop sweep --on ray`: each run is a Ray task. Ray places it, and starts it elsewhere when its machine is lost.

A task is the run's ordinary command in a process of its own, in the folder that all machines share: so it resumes by itself.
"""

import ctypes
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import Refused, first_line, printable
from ..report.runs import describe, in_use
from .sweep_cells import END_SECONDS, POLL_SECONDS, Cell, end, numbered, signals_noted, stopped, unfinished

RETRIES = 20  # starts of a run after its machine was lost; a run that fails is not tried again
REACH_SECONDS = 5
LOCK_SECONDS = 300  # that a run waits for what is left of it elsewhere to end: it saves, or its file server gives up its lock


def run_on_ray(cells: Sequence[Cell], launch: Sequence[str], where: str, cpus: int, gpus: int) -> dict[Cell, str]:
    """Give the cells that are not finished to the Ray cluster `where` ("ray" or "ray://HOST:PORT"), with cores and GPUs for each.

    Returns what became of each that did not finish, as `sweep.run` does. After SIGINT or SIGTERM, waits until the runs have
    saved, then raises Refused (130, 143). Raises Refused: no ray (2), no cluster (1).
    """
    ray = join(where)
    number, left, tasks = numbered(cells), {}, {}
    todo = [cell for cell in cells if not cell.result()]
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    print(
        f"{len(cells)} runs, {len(cells) - len(todo)} of them already finished; {len(alive)} machines in the cluster", flush=True
    )
    if todo and not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in alive):
        print(f"no machine of the cluster has {cpus} cores and {gpus} GPUs now: waiting for one", file=sys.stderr, flush=True)
    task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES, retry_exceptions=False)(run_cell)
    try:
        with signals_noted() as signals:
            for cell in todo:
                if in_use(cell.folder):
                    left[cell] = f"running: another command is working on {cell.folder}"
                    print(f"{number[cell]} {cell.name}: {printable(left[cell])}", flush=True)
                else:
                    tasks[task.options(name=cell.name).remote([*launch, *cell.flags], os.getcwd(), cell)] = cell
            while tasks and not signals:
                for ended in ray.wait([*tasks], timeout=POLL_SECONDS)[0]:
                    cell = tasks.pop(ended)
                    if what := _result(ray, ended, cell):
                        left[cell] = what
                    print(f"{number[cell]} {cell.name}: {printable(what or describe(cell.result() or {}))}", flush=True)
            if signals:
                print(f"stopping {len(tasks)} run{'s' * (len(tasks) > 1)}", flush=True)
                for waiting in tasks:
                    ray.cancel(waiting)
                if tasks:
                    ray.wait([*tasks], num_returns=len(tasks), timeout=END_SECONDS)
                raise stopped(tasks.values(), number, signals[0])
    finally:
        ray.shutdown()
    return left


def join(where: str) -> Any:
    """The module ray, joined to the cluster. `where` "ray": that of RAY_ADDRESS, or of this machine, else one of its own here."""
    try:
        import ray
    except ImportError as error:
        raise Refused(f"--on ray needs {error.name}: pip install ray", 2) from error
    address = where.removeprefix("ray").removeprefix("://") or os.environ.get("RAY_ADDRESS", "")
    way = "`ray start --head` prints the address of a new cluster, `ray status` asks a running one"
    if ":" in address:  # Ray itself tries for minutes
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), REACH_SECONDS).close()
        except (OSError, ValueError) as error:
            raise Refused(f"no Ray cluster at {address}: {getattr(error, 'strerror', None) or error}; {way}") from error
    try:
        ray.init(address=address or None, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        raise Refused(f"cannot join the Ray cluster {address}: {first_line(error)}; {way}") from error
    return ray


def _result(ray: Any, task: Any, cell: Cell) -> str:
    """State of the run of a task that has ended; "" if it finished."""
    try:
        return unfinished(cell, *ray.get(task))
    except ray.exceptions.RayTaskError as error:  # on its machine: no such folder, no oneloop, …
        return f"failed: {first_line(error.cause)}"
    except ray.exceptions.RayError as error:
        return f"interrupted: {first_line(error)}"


def run_cell(command: Sequence[str], folder: str, cell: Cell) -> tuple[int, str]:
    """On a machine of the cluster: accelerate's `command` in `folder`. Returns its exit code and its standard error."""
    os.chdir(folder)
    deadline = time.monotonic() + LOCK_SECONDS
    while in_use(cell.folder) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", *command]
    with tempfile.TemporaryDirectory() as place:
        with open(Path(place, "errors"), "w+") as errors:
            process = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True, preexec_fn=_follow_the_worker()
            )
        try:
            while process.poll() is None:  # Ray's interruption does not end a wait
                time.sleep(POLL_SECONDS)
        finally:  # the sweep was stopped: Ray interrupts the task
            if process.poll() is None:
                end({cell: process})
        return process.returncode, Path(place, "errors").read_text(errors="replace")


def _follow_the_worker() -> Any:
    """For the new process: have it get a SIGTERM when Ray's worker dies. A run ends with its launcher, after saving."""
    if sys.platform != "linux":
        return None
    libc, pr_set_pdeathsig = ctypes.CDLL(None), 1  # loaded before the fork
    return lambda: libc.prctl(pr_set_pdeathsig, signal.SIGTERM)
