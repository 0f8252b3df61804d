"""A training killed again and again, and relaunched each time by the same command: is the end the same?

    python benchmarks/torture.py --kills 50 --epochs 10
    python benchmarks/torture.py --kills 50 --epochs 4 --processes 1 2 3 4

SIGKILL at random moments, start-up, saves and evaluations included. 1 and 2 processes give the same bits: they take turns on one
run, by chance. Any further number adds up in an order of its own, and has a run of its own. An uninterrupted run comes first.
What must hold at the end: its sha256 of the weights, and metrics.jsonl with each line once.
"""

import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tyro

from launch.record.runs import read_metrics, without_clock

RECIPE = Path(__file__).parents[1] / "recipes/cifar2.py"


def main(
    kills: int = 50,
    epochs: int = 10,
    net: str = "NetBatchNorm",
    data: str = "hub",
    seed: int = 1,
    processes: tuple[int, ...] = (1, 2),
) -> None:
    """Train, kill and compare; exit 1 if the runs differ.

    Args:
        kills: times that the training is killed, divided among the runs.
        epochs: of the training.
        net: one of recipes/cifar2.py.
        data: as the recipe's.
        seed: of the moments, not of the training.
        processes: numbers of processes.
    """
    groups = [group for group in (tuple(n for n in processes if n <= 2), *((n,) for n in processes if n > 2)) if group]
    flags = ["--data", data, "--net", net, "--epochs", str(epochs), "--shards", str(math.lcm(*processes)), "--threads", "1"]
    flags += ["--save-every", "20", "--log-every", "10", "--wandb", "disabled"]
    chance, sound = random.Random(seed), True
    for number, group in enumerate(groups):
        share = kills // len(groups) + (number < kills % len(groups))
        with tempfile.TemporaryDirectory(prefix="oneloop-torture-") as place:
            sound &= torture(group, share, flags, chance, Path(place))
    sys.exit(0 if sound else 1)


def torture(group: tuple[int, ...], kills: int, flags: list[str], chance: random.Random, folder: Path) -> bool:
    """Whether a run killed so many times, on these numbers of processes by chance, ends as the uninterrupted one on the first."""

    def start(name: str, processes: int) -> subprocess.Popen:
        several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
        command = [sys.executable, *several, str(RECIPE), *flags, "--out", str(folder / name)]
        with open(folder / f"{name}.log", "w") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    began = time.monotonic()
    if start("straight", group[0]).wait():
        sys.exit((folder / "straight.log").read_text())
    straight = time.monotonic() - began
    print(f"uninterrupted, processes {group[0]}: {straight:.0f} s", flush=True)
    # Seconds of training between kills, so that all of them fit: some steps are done twice, others while nobody looks.
    at_work, killed = 0.5 * straight / (kills + 1), dict.fromkeys(group, 0)
    while sum(killed.values()) < kills:
        processes = chance.choice(group)
        process = start("tortured", processes)
        before = last_step(folder / "tortured")
        # Some die while they start; the others some time after they have gone on.
        if chance.random() < 0.8:
            while last_step(folder / "tortured") <= before and process.poll() is None:
                time.sleep(0.05)
            time.sleep(chance.uniform(0, at_work))
        else:
            time.sleep(chance.uniform(0, 8))
        if process.poll() is not None:
            break  # it has finished, or failed
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        killed[processes] += 1
        print(f"kill {sum(killed.values()):>3}, processes {processes}, after step {last_step(folder / 'tortured')}", flush=True)
    if code := start("tortured", group[-1]).wait():
        sys.exit(f"exit code {code}: {(folder / 'tortured.log').read_text()}")
    digests = [json.loads((folder / name / "result.json").read_text())["weights_sha256"] for name in ("straight", "tortured")]
    records = [lines(folder / name) for name in ("straight", "tortured")]
    same = digests[0] == digests[1] and records[0] == records[1]
    times = ", ".join(f"{count} on {number}" for number, count in killed.items())
    print(f"{sum(killed.values())} kills by number of processes: {times}; {time.monotonic() - began:.0f} s")
    print(f"weights_sha256 {digests[0]} and {digests[1]}")
    print(f"metrics.jsonl: {len(records[0])} and {len(records[1])} lines; {'the same' if same else 'NOT THE SAME'}", flush=True)
    return same and sum(killed.values()) == kills


def lines(folder: Path) -> list[dict]:
    """metrics.jsonl without what the clock measures."""
    return without_clock(read_metrics(folder / "metrics.jsonl"))


def last_step(folder: Path) -> int:
    return max((event["step"] for event in lines(folder)), default=0)


if __name__ == "__main__":
    tyro.cli(main)
