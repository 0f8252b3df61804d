"""A training killed again and again, and relaunched each time by the same command: is the end the same?

    python benchmarks/torture.py --kills 50 --epochs 10

SIGKILL at random moments, start-up, saves and evaluations included, on one and on two processes in turn by chance. The
uninterrupted run comes first. What must hold at the end: its sha256 of the weights, and metrics.jsonl with each line once.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tyro

from launch.runs import read_metrics

RECIPE = Path(__file__).parents[1] / "recipes/cifar2.py"
CLOCK = ("seconds", "images_per_second")


def main(kills: int = 50, epochs: int = 10, net: str = "NetBatchNorm", data: str = "hub", seed: int = 1) -> None:
    """Train, kill and compare; exit 1 if the runs differ.

    Args:
        kills: times that the training is killed.
        epochs: of the training.
        net: one of recipes/cifar2.py.
        data: as the recipe's.
        seed: of the moments, not of the training.
    """
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="oneloop-torture-") as place:
        folder = Path(place)
        flags = ["--data", data, "--net", net, "--epochs", str(epochs), "--shards", "2", "--threads", "1"]
        flags += ["--save-every", "20", "--log-every", "10", "--wandb", "disabled"]

        def start(name: str, processes: int) -> subprocess.Popen:
            several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if processes == 2 else []
            command = [sys.executable, *several, str(RECIPE), *flags, "--out", str(folder / name)]
            with open(folder / f"{name}.log", "w") as log:
                return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

        began = time.monotonic()
        if start("straight", 1).wait():
            sys.exit((folder / "straight.log").read_text())
        straight = time.monotonic() - began
        print(f"uninterrupted: {straight:.0f} s", flush=True)
        # Seconds of training between kills, so that all of them fit: some steps are done twice, others while nobody looks.
        at_work, killed = 0.5 * straight / (kills + 1), {1: 0, 2: 0}
        while sum(killed.values()) < kills:
            processes = chance.choice((1, 2))
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
            print(f"kill {sum(killed.values()):>3} on {processes}, after step {last_step(folder / 'tortured')}", flush=True)
        if code := start("tortured", 1).wait():
            sys.exit(f"exit code {code}: {(folder / 'tortured.log').read_text()}")
        digests = [json.loads((folder / name / "result.json").read_text())["weights_sha256"] for name in ("straight", "tortured")]
        records = [lines(folder / name) for name in ("straight", "tortured")]
        same = digests[0] == digests[1] and records[0] == records[1]
        print(f"{sum(killed.values())} kills: {killed[1]} on one process, {killed[2]} on two; {time.monotonic() - began:.0f} s")
        print(f"weights_sha256 {digests[0]} and {digests[1]}")
        print(f"metrics.jsonl: {len(records[0])} and {len(records[1])} lines; {'the same' if same else 'NOT THE SAME'}")
        sys.exit(0 if same and sum(killed.values()) == kills else 1)


def lines(folder: Path) -> list[dict]:
    """metrics.jsonl without what the clock says."""
    return [{key: value for key, value in event.items() if key not in CLOCK} for event in read_metrics(folder / "metrics.jsonl")]


def last_step(folder: Path) -> int:
    return max((event["step"] for event in lines(folder)), default=0)


if __name__ == "__main__":
    tyro.cli(main)
