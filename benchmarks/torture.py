"""Kill a training again and again, relaunch it each time with the same command: does it end with the same bits?

    python benchmarks/torture.py --kills 50 --epochs 10
    python benchmarks/torture.py --kills 50 --epochs 4 --processes 1 2 3 4
    python benchmarks/torture.py --kills 24 --epochs 10 --image docs/killed.png    # the README's image
    python benchmarks/torture.py --recipe custom --kills 60 --epochs 4 --processes 1 2 3

An uninterrupted run comes first. The other run is killed by SIGKILL, launcher and workers alike, at random moments: in start-up,
steps, saves and evaluations. 1 and 2 processes give the same bits, so each launch of one run picks either. Any larger number adds
gradients in its own order and has a run of its own. At the end both runs must have the same sha256 of the weights and the same
metrics.jsonl, each line once.

`--recipe custom` is recipes/custom.py as its users run it, in each of its modes: images of three classes in a folder that
has no splits, with a broken file; CifarResNet, which has batch norm; an average, mixing, early stopping. Kills come at any
moment from the first import to the last byte of the report; on several processes they hit all of them, the main one alone or the
last one alone; now and then nothing is left of the cache, so that files are examined and stored again. Where one run is complete,
another is begun, until there were as many kills as wanted. A digest is printed for each mode and group of numbers of processes.
"""

import contextlib
import hashlib
import json
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal

import matplotlib.figure
import numpy as np
import psutil
import tyro
from PIL import Image

from launch.report.plots import COLOURS
from launch.report.runs import read_metrics, without_clock

RECIPE = Path(__file__).parents[1] / "recipes/cifar2.py"
IMAGES = RECIPE.with_name("custom.py")
MODES = ("scratch", "finetune", "frozen", "gradual")
TOLD = ("another process died", "stopped by SIGTERM")  # what those that are left say


def main(
    kills: int = 50,
    epochs: int = 10,
    net: str = "NetBatchNorm",
    data: str = "hub",
    seed: int = 1,
    processes: tuple[int, ...] = (1, 2),
    image: Path | None = None,
    recipe: Literal["cifar2", "custom"] = "cifar2",
) -> None:
    """Train, kill and compare; exit 1 if the runs differ.

    Args:
        kills: how often the training is killed, divided among the runs.
        epochs: epochs of training.
        net: a net of recipes/cifar2.py.
        data: same as the recipe's --data.
        seed: random seed of the kills, not of the training.
        processes: numbers of processes.
        image: PNG file of the last run, beside the uninterrupted one.
        recipe: which one is trained; data, net and image are cifar2's.
    """
    groups = [group for group in (tuple(n for n in processes if n <= 2), *((n,) for n in processes if n > 2)) if group]
    flags = ["--data", data, "--net", net, "--epochs", str(epochs)]
    flags += ["--micro-batches", str(math.lcm(*processes)), "--threads", "1"]
    flags += ["--save-every", "20", "--log-every", "10", "--wandb", "disabled"]
    chance, sound = random.Random(seed), True
    if recipe == "custom":
        with tempfile.TemporaryDirectory(prefix="oneloop-torture-") as place:
            sys.exit(0 if torture_images(groups, kills, epochs, math.lcm(*processes), chance, Path(place)) else 1)
    for number, group in enumerate(groups):
        share = kills // len(groups) + (number < kills % len(groups))
        with tempfile.TemporaryDirectory(prefix="oneloop-torture-") as place:
            sound &= torture(group, share, flags, chance, Path(place))
            if image:
                draw(image, Path(place))
    sys.exit(0 if sound else 1)


def torture(group: tuple[int, ...], kills: int, flags: list[str], chance: random.Random, folder: Path) -> bool:
    """Check that a run killed `kills` times, each launch on a random number in `group`, ends as an uninterrupted run does.

    Leaves both runs and launches.json in `folder`.
    """

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
    # Kills are spread over the training: the k-th at a random step of its k-th part.
    part, launches = last_step(folder / "straight") / (kills + 1), []
    while len(launches) < kills:
        processes = chance.choice(group)
        resumed = saved_step(folder / "tortured")
        process = start("tortured", processes)
        before = last_step(folder / "tortured")
        if chance.random() < 0.8:
            least = max(before + 1, part * (len(launches) + chance.random()))
            while last_step(folder / "tortured") < least and process.poll() is None:
                time.sleep(0.02)
            time.sleep(chance.uniform(0, 0.2))
        else:  # during start-up
            time.sleep(chance.uniform(0, 8))
        if process.poll() is not None:
            break  # it has finished, or failed
        kill(process)
        reached = max(resumed, last_step(folder / "tortured"))
        launches.append({"processes": processes, "from": resumed, "to": reached})
        print(f"kill {len(launches):>3}, processes {processes}, after step {reached}", flush=True)
    launches.append({"processes": group[-1], "from": saved_step(folder / "tortured"), "to": None})
    (folder / "launches.json").write_text(json.dumps(launches))
    if code := start("tortured", group[-1]).wait():
        sys.exit(f"exit code {code}: {(folder / 'tortured.log').read_text()}")
    digests = [json.loads((folder / name / "result.json").read_text())["weights_sha256"] for name in ("straight", "tortured")]
    records = [lines(folder / name) for name in ("straight", "tortured")]
    same = digests[0] == digests[1] and records[0] == records[1]
    killed = [launch["processes"] for launch in launches[:-1]]
    times = ", ".join(f"{killed.count(number)} on {number}" for number in group)
    print(f"{len(killed)} kills by number of processes: {times}; {time.monotonic() - began:.0f} s")
    print(f"weights_sha256 {digests[0]} and {digests[1]}")
    print(f"metrics.jsonl: {len(records[0])} and {len(records[1])} lines; {'the same' if same else 'NOT THE SAME'}", flush=True)
    return same and len(killed) == kills


# ----------------------------------------------------------------------------------------------------------------- images


def torture_images(
    groups: list[tuple[int, ...]], kills: int, epochs: int, micro_batches: int, chance: random.Random, place: Path
) -> bool:
    """Check that every mode on every group of numbers of processes ends with one digest, whatever is killed. Prints them."""
    data = photographs(place / "photos")
    common = ["--data", str(data), "--skip-bad", "--net", "CifarResNet", "--size", "16", "--epochs", str(epochs)]
    common += ["--batch", str(4 * micro_batches), "--micro-batches", str(micro_batches)]
    common += ["--threads", "1", "--save-every", "2", "--log-every", "1"]
    common += [
        "--ema",
        "0.9",
        "--patience",
        "2",
        "--mix",
        "either",
        "--validation",
        "0.2",
        "--test",
        "0.2",
        "--wandb",
        "disabled",
    ]
    cells = [(mode, group) for group in groups for mode in MODES]
    sound, killed, told = True, 0, [0, 0]
    for number, (mode, group) in enumerate(cells):
        folder = place / f"{mode}-{group[-1]}"
        folder.mkdir()
        source = ["--source", str(place / f"scratch-{group[-1]}/straight")] if mode != "scratch" else []
        share = kills // len(cells) + (number < kills % len(cells))
        digests, deaths = torture_mode(folder, group, ["--mode", mode, *source, *common], share, chance, told)
        killed += deaths
        sound &= len({*digests}) == 1 and deaths == share
        same = "the same" if len({*digests}) == 1 else f"NOT THE SAME: {digests}"
        names = " or ".join(map(str, group))
        print(f"{mode} on {names}: {deaths} kills, {len(digests)} complete runs, sha256 {digests[0]}, {same}", flush=True)
    print(f"{killed} kills; the loss of one process was told by another {told[0]} times of {told[1]}")
    return sound


def torture_mode(
    folder: Path, group: tuple[int, ...], flags: list[str], kills: int, chance: random.Random, told: list[int]
) -> tuple[list[str], int]:
    """The digests of an uninterrupted run and of those that were killed, and how often that was. Counts in `told`."""
    cache, log = folder / "cache", folder / "log"

    def start(name: str, processes: int) -> subprocess.Popen:
        several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
        command = [sys.executable, *several, str(IMAGES), *flags, "--out", str(folder / name)]
        environment = os.environ | {"ONELOOP_CACHE": str(cache), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        with open(log, "w") as file:
            return subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True, env=environment)

    def failed(code: int) -> None:
        sys.exit(f"exit code {code}: {log.read_text()}")

    began = time.monotonic()
    process = start("straight", chance.choice(group))
    while not written(folder / "straight") and process.poll() is None:
        time.sleep(0.02)
    starting = time.monotonic() - began
    total, last = 0, began
    while process.poll() is None:
        if (now := written(folder / "straight")) > total:
            total, last = now, time.monotonic()
        time.sleep(0.02)
    ending = time.monotonic() - last
    if process.returncode:
        failed(process.returncode)
    digests, deaths, total = [digest_of(folder / "straight")], 0, written(folder / "straight")
    while deaths < kills:
        processes, moment = chance.choice(group), chance.choice(("start-up", "steps", "steps", "end"))
        if chance.random() < 0.3:
            shutil.rmtree(cache, ignore_errors=True)
        process = start("tortured", processes)
        before = written(folder / "tortured")
        if moment == "steps" and before >= total:
            moment = "end"
        if moment == "start-up":
            time.sleep(chance.uniform(0, 1.2 * starting))
        else:
            least = total if moment == "end" else chance.randint(min(before, total - 1), total - 1) + 1
            while written(folder / "tortured") < least and process.poll() is None:
                time.sleep(0.01)
            time.sleep(chance.uniform(0, ending if moment == "end" else 0.3))
        if process.poll() is None:
            who = chance.choice(("all", "main", "last")) if processes > 1 else "all"
            said = ""
            if who == "all" or not kill_one(process, 0 if who == "main" else processes - 1):
                who = "all"
                kill(process)
            else:
                process.wait(120)
                said = "told" if any(words in log.read_text() for words in TOLD) else "not told"
                told[1] += 1
                told[0] += said == "told"
            deaths += 1
            there = written(folder / "tortured")
            print(f"  kill {deaths:>2} of {who:4} of {processes} in {moment:8}, {there} lines {said}", flush=True)
        elif process.returncode:
            failed(process.returncode)
        if (folder / "tortured/result.json").exists():
            digests.append(digest_of(folder / "tortured"))
            shutil.rmtree(folder / "tortured")
    if code := start("tortured", group[-1]).wait():
        failed(code)
    return [*digests, digest_of(folder / "tortured")], deaths


def kill_one(process: subprocess.Popen, rank: int) -> bool:
    """SIGKILL to one worker alone; False if it is not there yet, or no more."""
    for worker in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error, OSError):
            if worker.environ().get("RANK") == str(rank):
                worker.kill()
                return True
    return False


def written(folder: Path) -> int:
    """The lines of metrics.jsonl in a run's folder, those of its stages included."""
    records = (*folder.glob("metrics.jsonl"), *folder.glob("*/metrics.jsonl"))  # not below: checkpoints come and go meanwhile
    return sum(path.read_bytes().count(b"\n") for path in records)


def digest_of(folder: Path) -> str:
    """sha256 over all that a run has computed: its weights, its record and its results, without what the clock measures."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.name in ("model.safetensors", "best.safetensors", "ema.safetensors") and "checkpoints" not in path.parts:
            digest.update(path.read_bytes())
        elif path.name == "metrics.jsonl":
            digest.update(json.dumps(lines(path.parent)).encode())
        elif path.name == "result.json":
            result = json.loads(path.read_bytes())
            for each in (result, *result.get("stages", ())):
                for name in ("seconds", "images_per_second", "world_size"):
                    each.pop(name, None)
            digest.update(json.dumps(result, sort_keys=True).encode())
    return digest.hexdigest()


def photographs(folder: Path) -> Path:
    """60 small images of three classes, and a file that is none."""
    for number in range(60):
        label = folder / "abc"[number % 3]
        label.mkdir(parents=True, exist_ok=True)
        coarse = np.random.default_rng(number).integers(0, 256, (4, 6, 3), dtype=np.uint8)
        coarse[number % 3] //= 4
        Image.fromarray(coarse).resize((40, 30), Image.Resampling.BILINEAR).save(label / f"{number}.jpg")
    (folder / "a/none.jpg").write_bytes(b"no image")
    return folder


# ------------------------------------------------------------------------------------------------------------------- cifar2


def kill(process: subprocess.Popen) -> None:
    """SIGKILL to a launch, its workers included: torch's launcher gives them sessions of their own."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()
    psutil.wait_procs(family)


def draw(file: Path, folder: Path) -> None:
    """Both runs' training loss in one plot; below it each launch, from the step it resumed at to the last one it recorded."""
    straight, tortured = (lines(folder / name) for name in ("straight", "tortured"))
    digests = [json.loads((folder / name / "result.json").read_text())["weights_sha256"] for name in ("straight", "tortured")]
    launches = json.loads((folder / "launches.json").read_text())
    launches[-1]["to"] = tortured[-1]["step"]
    killed = launches[:-1]
    numbers = sorted({launch["processes"] for launch in launches})
    colours = dict(zip(numbers, COLOURS[:1] + COLOURS[2:], strict=False))
    figure = matplotlib.figure.Figure(figsize=(8.3, 4.9), layout="constrained", dpi=120, facecolor="white")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[4, 0.5 + 0.35 * len(numbers)])
    for events, style, label in (
        (straight, {"color": COLOURS[4], "linewidth": 5, "alpha": 0.6}, f"uninterrupted on {numbers[0]} process"),
        (tortured, {"color": "black", "linewidth": 0.9}, f"killed {len(killed)} times, resumed by the same command"),
    ):
        train = [event for event in events if event["event"] == "train"]
        accuracy = [event["accuracy"] for event in events if event.get("split") == "test"][-1]
        label = f"{label}: test accuracy {accuracy:.4f}"
        above.plot([event["step"] for event in train], [event["loss"] for event in train], label=label, **style)
    for launch in launches:
        colour, row = colours[launch["processes"]], numbers.index(launch["processes"])
        below.plot([launch["from"], launch["to"]], [row, row], color=colour, linewidth=5, solid_capstyle="butt")
    for launch in killed:
        below.plot(launch["to"], numbers.index(launch["processes"]), "x", color=COLOURS[1], markersize=7, markeredgewidth=1.6)
        above.axvline(launch["to"], ymax=0.74, color=COLOURS[1], linewidth=0.7, alpha=0.6)
    above.plot([], [], "|", color=COLOURS[1], markersize=12, label="SIGKILL")
    above.set(ylabel="training loss, mean of 10 steps")
    above.legend(framealpha=1, edgecolor="white", loc="upper right")
    below.set_yticks(range(len(numbers)), [f"{number} process{'es' * (number > 1)}" for number in numbers])
    below.set(xlabel="step", ylim=(-0.6, len(numbers) - 0.4), xlim=(0, tortured[-1]["step"]))
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    same = "the same weights, bit for bit" if digests[0] == digests[1] else "NOT THE SAME WEIGHTS"
    processes = " or ".join(map(str, numbers))
    figure.suptitle(f"One training, killed {len(killed)} times on {processes} processes: {same}", fontsize=13)
    above.set_title(
        f"{'uninterrupted':15}  weights_sha256 {digests[0]}\n{f'killed {len(killed)} times':15}  weights_sha256 {digests[1]}",
        family="monospace",
        fontsize=7.5,
    )
    figure.savefig(file)


def lines(folder: Path) -> list[dict]:
    """metrics.jsonl without what the clock measures."""
    return without_clock(read_metrics(folder / "metrics.jsonl"))


def last_step(folder: Path) -> int:
    return max((event["step"] for event in lines(folder)), default=0)


def saved_step(folder: Path) -> int:
    """The newest checkpoint's step, 0 if there is none."""
    return max((int(path.name.removeprefix("step-")) for path in folder.glob("checkpoints/step-*[0-9]")), default=0)


if __name__ == "__main__":
    tyro.cli(main)
