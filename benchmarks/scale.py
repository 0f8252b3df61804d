"""Time of a step over a network: gradients of three sizes, summed by 2 and 4 processes over a link, and a model.

    make scale
    python benchmarks/scale.py --rounds 5

Each process lives in a network namespace of its own, as if on a machine of its own; needs root and iproute2, on Linux. `tc` (tbf)
shapes what each sends; a switch in user space, to which all are wired by TUN devices, holds every packet for the delay, as `tc`'s
netem would where the kernel has it. A step is what DDP does, with a little work for two cores: an allreduce of each bucket of the
gradients (1 MiB, then 25 MiB), by gloo in float32, then oneloop's own of two numbers (launch/training/step.py).

The model knows the link from two measurements that the steps do not enter: `start`, the time of an allreduce of 8 bytes among all
processes, and the bandwidth of a large message between two. Of each collective a ring of N sends 2 (N - 1) / N of the bytes:

    step = compute + sum over collectives of (start + 2 (N - 1) / N · bytes / bandwidth)

Of N GPUs, where nothing is measured, start is 2 (N - 1) latencies: those of a ring, whose messages wait for one another.
"""

import contextlib
import ctypes
import fcntl
import heapq
import json
import os
import select
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import matplotlib
import speed
import torch
import tyro
from matplotlib import pyplot
from torch import distributed

matplotlib.use("Agg")
os.environ |= {"GLOO_SOCKET_IFNAME": "cable", "TORCH_CPP_LOG_LEVEL": "ERROR"}
COUNTS = {"Net": 18_090, "ResNet-20": 272_474, "ResNet-50": 25_557_032}  # parameters; float32
LINKS = [(rate, delay) for rate in (1.0, 10.0) for delay in (0.1, 1.0, 5.0)]  # Gbit/s, ms of a way
WORK = 0.002  # seconds of compute in a step: both cores are needed for the network
FIRST, BUCKET = 1 << 20, 25 << 20  # bytes, as DDP's
OWN = 8  # bytes of oneloop's own collective
NAME = f"scale-{os.getpid()}"
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 1, 0x1000
MTU = 65_000
# Of the prediction, seconds of work of one GPU: README's 4,450 images/s of ResNet-50 in bf16, batch 128, on an H200.
GPU_STEP = 128 / 4450


def main(rounds: int = 3, seconds: float = 420.0, out: Path | None = None, plot: Path = Path("docs/scale.png")) -> None:
    """Measure, compare with the model, draw.

    Args:
        rounds: turns through all links.
        seconds: no round begins after these.
        out: the JSON file; default: benchmarks/results/scale-<machine>.json.
        plot: the PNG file.
    """
    began, rows = time.monotonic(), {}
    for number in range(rounds):
        if number and time.monotonic() - began > seconds * number / (number + 1):
            break
        for world in (2, 4):
            for rate, delay in LINKS if number % 2 else LINKS[::-1]:
                for name, value in measured(world, rate, delay).items():
                    rows.setdefault((world, rate, delay), {}).setdefault(name, []).append(value)
        print(f"round {number + 1}: {time.monotonic() - began:.0f} s", flush=True)
    found = [compared(*key, {name: statistics.median(values) for name, values in row.items()}, rows) for key, row in rows.items()]
    for row in found:
        steps = "  ".join(f"{net} {row['steps'][net]:7.1f} ({row['model'][net]:7.1f})" for net in COUNTS)
        print(f"{row['world']} × {row['gbit']:g} Gbit/s {row['ms']:g} ms: {steps} ms measured (model)")
    ratios = [row["steps"][net] / row["model"][net] for row in found for net in COUNTS]
    facts = {"machine": speed.machine(), "rounds": min(map(len, next(iter(rows.values())).values())), "work_ms": WORK * 1e3}
    facts |= {"measured_against_model": {"median": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}}
    print(json.dumps(facts))
    out = out or Path(__file__).parent / "results" / f"scale-{speed.machine()}.json"
    out.write_text(json.dumps(facts | {"rows": found, "predicted": predicted()}, indent=1) + "\n")
    draw(found, plot)
    print(out, plot, sep="\n")


def compared(world: int, rate: float, delay: float, row: dict[str, float], rows: dict) -> dict:
    """The medians of one link in milliseconds, beside the model's. The bandwidth is that of two processes."""
    bandwidth = statistics.median(rows[2, rate, delay]["bandwidth"])
    return {
        "world": world, "gbit": rate, "ms": delay,
        "latency_ms": row["latency"] * 1e3, "start_ms": row["start"] * 1e3, "bandwidth_gbit": bandwidth * 8e-9,
        "steps": {net: row[net] * 1e3 for net in COUNTS},
        "model": {net: 1e3 * model(4 * count, world, row["start"], bandwidth, row["work"]) for net, count in COUNTS.items()},
    }  # fmt: skip


def buckets(size: int) -> list[int]:
    """Bytes of each allreduce for `size` bytes of gradients."""
    first = min(size, FIRST)
    rest = size - first
    return [first, *(min(BUCKET, rest - place) for place in range(0, rest, BUCKET))]


def model(size: int, world: int, start: float, bandwidth: float, work: float) -> float:
    """Seconds of a step that sums `size` bytes of gradients: start and work in seconds, bandwidth in bytes a second."""
    return work + sum(start + 2 * (world - 1) / world * part / bandwidth for part in [*buckets(size), OWN])


def predicted() -> list[dict]:
    """Efficiency of ResNet-50 on GPUs of one network, one process on each: without overlap, and with all of it overlapped."""
    found = []
    for rate, delay in ((10, 0.1), (100, 0.02), (400, 0.01)):
        for world in (8, 64, 256):
            whole = model(COUNTS["ResNet-50"] * 4, world, 2 * (world - 1) * delay * 1e-3, rate / 8 * 1e9, 0.0)
            parts = {"none": GPU_STEP + whole, "all": max(GPU_STEP, whole)}
            found.append({"gbit": rate, "ms": delay, "world": world, "communication_ms": whole * 1e3}
                         | {f"efficiency_{name}": GPU_STEP / step for name, step in parts.items()})  # fmt: skip
    return found


# ---------------------------------------------------------------------------------------------------------- the measurement


def measured(world: int, rate: float, delay: float) -> dict[str, float]:
    """Seconds of a step for each net, the seconds of its work, and the link, as `worker` finds them."""
    workers = []
    with wired(world, rate, delay):
        read, write = os.pipe()  # after the switch began, which would hold it open
        for rank in range(world):
            if child := os.fork():
                workers.append(child)
                continue
            try:
                enter(f"{NAME}-{rank}")
                found = worker(rank, world)
                if rank == 0:
                    os.write(write, json.dumps(found).encode())
                os._exit(0)
            except BaseException as error:
                print(f"process {rank}: {error}", file=sys.stderr, flush=True)
                os._exit(1)
        os.close(write)
        with os.fdopen(read) as answer:
            text = answer.read()
        for child in workers:
            os.waitpid(child, 0)
    return json.loads(text)


def enter(name: str) -> None:
    """Live in the network namespace from now on."""
    with open(f"/run/netns/{name}") as place:
        assert ctypes.CDLL(None).setns(place.fileno(), 0) == 0


@contextlib.contextmanager
def wired(world: int, rate: float, delay: float) -> Iterator[None]:
    """A namespace for each process, its interface `cable` 10.78.0.1, .2, …, and the switch between them."""
    ports, switch = [], 0
    try:
        for rank in range(world):
            name = f"{NAME}-{rank}"
            ip("netns", "add", name)
            ports.append(tun(name))
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "addr", "add", f"10.78.0.{rank + 1}/24", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "mtu", str(MTU), "txqueuelen", "1000", "up")
            shape = ("rate", f"{rate}gbit", "burst", "256kb", "latency", "100ms")
            run("ip", "netns", "exec", name, "tc", "qdisc", "add", "dev", "cable", "root", "tbf", *shape)
        if not (switch := os.fork()):
            try:
                relay(ports, delay * 1e-3)
            finally:
                os._exit(1)
        yield
    finally:
        if switch:
            os.kill(switch, 9)
            os.waitpid(switch, 0)
        for rank, port in enumerate(ports):
            os.close(port)
            ip("netns", "del", f"{NAME}-{rank}")


def ip(*args: str) -> None:
    run("ip", *args)


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr.strip()}; needs root, iproute2, and the kernel's tbf and TUN")


def tun(name: str) -> int:
    """A TUN device `cable` in the namespace: what is sent there is read here, a packet at a time."""
    with open("/proc/self/ns/net") as here:
        enter(name)
        try:
            port = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            fcntl.ioctl(port, TUNSETIFF, struct.pack("16sH22x", b"cable", IFF_TUN | IFF_NO_PI))
        finally:
            assert ctypes.CDLL(None).setns(here.fileno(), 0) == 0
    return port


def relay(ports: list[int], delay: float) -> None:
    """Hand each packet on to the port of its address, `delay` seconds after it came. Never returns."""
    ctypes.CDLL(None).prctl(29, 1000)  # PR_SET_TIMERSLACK: wake within a microsecond
    waiting: list[tuple[float, int, int, bytes]] = []
    number = 0
    while True:
        now = time.monotonic()
        while waiting and waiting[0][0] <= now:
            _, _, to, packet = heapq.heappop(waiting)
            with contextlib.suppress(BlockingIOError):  # its queue is full: lost, as on a wire
                os.write(to, packet)
        ready, _, _ = select.select(ports, [], [], max(0.0, waiting[0][0] - time.monotonic()) if waiting else None)
        for port in ready:
            for _ in range(16):
                try:
                    packet = os.read(port, MTU + 100)
                except BlockingIOError:
                    break
                if packet[0] >> 4 == 4 and 0 < packet[19] <= len(ports):
                    number += 1
                    heapq.heappush(waiting, (time.monotonic() + delay, number, ports[packet[19] - 1], packet))


def worker(rank: int, world: int) -> dict[str, float]:
    """One of the processes; what it found, in seconds, and bytes a second."""
    torch.set_num_threads(1)
    store = distributed.TCPStore("10.78.0.1", 29500, world, rank == 0, timedelta(seconds=60))
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timedelta(seconds=60))
    found: dict[str, float] = {}
    if rank < 2:
        for name, count, times in (("latency", 1, 20), ("bandwidth", 4 << 20, 3)):
            message = torch.zeros(count)
            taken = []
            for _ in range(times):
                began = time.perf_counter()
                for sender in (0, 1):
                    (distributed.send if rank == sender else distributed.recv)(message, 1 - rank)
                taken.append((time.perf_counter() - began) / 2)
            found[name] = statistics.median(taken)
        found["bandwidth"] = (16 << 20) / max(1e-9, found["bandwidth"] - found["latency"])
    own = torch.zeros(2)
    taken = []
    for _ in range(12):
        began = time.perf_counter()
        distributed.all_reduce(own)
        taken.append(time.perf_counter() - began)
    found["start"] = statistics.median(taken)
    works: list[float] = []
    for net, count in COUNTS.items():
        gradients = [torch.ones(size // 4) for size in buckets(count * 4)]
        taken = []
        distributed.barrier()
        for turn in range(3 if count > 1e6 else 12):  # each begins where the one before ended, as in a training
            began = time.perf_counter()
            until = began + WORK
            while time.perf_counter() < until:
                pass
            works.append(time.perf_counter() - began)
            for gradient in gradients:
                distributed.all_reduce(gradient)
            distributed.all_reduce(own)
            if turn:  # the first makes connections
                taken.append(time.perf_counter() - began)
        found[net] = statistics.median(taken)
    found["work"] = statistics.median(works)
    distributed.barrier()
    return found


def draw(rows: list[dict], path: Path) -> None:
    """Measured against predicted by the model, both in ms, one colour for each net; the diagonal is the model."""
    figure, axes = pyplot.subplots(figsize=(6.5, 5), layout="constrained")
    for net in COUNTS:
        for world, marker in ((2, "o"), (4, "^")):
            chosen = [row for row in rows if row["world"] == world]
            x, y = ([row[what][net] for row in chosen] for what in ("model", "steps"))
            colour = f"C{list(COUNTS).index(net)}"
            axes.scatter(x, y, marker=marker, color=colour, label=f"{net}, {world} processes", alpha=0.8)
    ends = [min(row["model"]["Net"] for row in rows), max(row["model"]["ResNet-50"] for row in rows)]
    axes.plot(ends, ends, color="grey", linewidth=1, label="model = measured")
    axes.set(xscale="log", yscale="log", xlabel="model, ms per step", ylabel="measured, ms per step")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    tyro.cli(main)
