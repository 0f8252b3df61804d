"""Each of the 8 processes of a job, one after the other in one process: torch's fake process group sends and waits for nothing.

What a process would do is all there, its collectives included; what it would receive from the others is not, so no number is.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import jobs
import pytest
import torch
import torch.distributed
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from conftest import Tiny
from tiny import tiny_images
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from training import fit

from launch import Run
from launch.data.feed import MemoryFeed
from launch.processes import accelerator
from launch.training.step import Step

WORLD, EPOCHS, BATCH = 8, 2, 20  # the last batch of an epoch has 1 of the 61 images: 7 processes have nothing to do
STEPS = -(-61 // BATCH)


class Collectives(TorchDispatchMode):
    """Notes each collective, DDP's included: its name, the sizes of its tensors, what else it is told."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            tensors = [list(each.shape) for each in torch.utils._pytree.tree_leaves(args) if isinstance(each, torch.Tensor)]
            self.seen.append([func.overloadpacket.__name__, tensors, [each for each in args if type(each) is int]])
        return func(*args, **kwargs or {})


def reduced(_, bucket: torch.distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """DDP's handling of a bucket; it would wait for the result of its own reduction, which the fake group lacks."""
    torch.distributed.all_reduce(bucket.buffer())
    future = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future


def job(place: Path, fault: Callable[[Run], None] = lambda run: None) -> list[dict]:
    """The record of each process: its collectives, its micro-batches of each step, its images of each evaluation."""
    record = []
    for rank in range(WORLD):
        with pytest.MonkeyPatch.context() as patch:
            record.append(process(place / str(rank), rank, patch, fault))
    return record


def process(folder: Path, rank: int, patch: pytest.MonkeyPatch, fault: Callable[[Run], None]) -> dict:
    collectives, micro_batches, tested, backward, batch = Collectives(), [], [], Step._backward, MemoryFeed.batch
    prepare_model = Accelerator.prepare_model

    def noted_micro_batch(self, micro_batch, *rest, **options):
        micro_batches.append([self.number, micro_batch.ids.tolist(), micro_batch.weight])
        return backward(self, micro_batch, *rest, **options)

    def with_hook(self, model, **options):
        prepared = prepare_model(self, model, **options)
        prepared.register_comm_hook(None, reduced)
        return prepared

    def on_main(self, action):  # what the main process would send is made here
        collectives.seen.append(["on_main", [], []])
        return action()

    def noted_batch(self, ids, augments=()):
        if not torch.is_grad_enabled():
            tested.append([len(self.labels), ids.tolist()])
        return batch(self, ids, augments)

    patch.setattr(Accelerator, "prepare_model", with_hook)
    patch.setattr(Step, "_backward", noted_micro_batch)
    patch.setattr(MemoryFeed, "batch", noted_batch)
    patch.setattr(MemoryFeed, "evaluation_batch", 2)  # so that an evaluation has more batches than there are processes
    patch.setattr(Run, "on_main", on_main)
    places = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": WORLD,
        "LOCAL_WORLD_SIZE": WORLD,
        "MASTER_ADDR": "x",
        "MASTER_PORT": 1,
    }
    os.environ.update({name: str(value) for name, value in places.items()} | {"OMP_NUM_THREADS": "1"})
    torch.distributed.init_process_group("fake", rank=rank, world_size=WORLD, store=FakeStore())
    try:
        run = Run(data="synthetic", out=folder, wandb="disabled", threads=1, seed=1)
        with collectives:
            assert run.start("test", {}) is None
            assert (run.world, run.rank, run.micro_batches) == (WORLD, rank, WORLD)
            fault(run)
            fit(run, tiny_images(), model=Tiny(), epochs=EPOCHS, batch=BATCH)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        AcceleratorState._reset_state(True)
    return {"collectives": collectives.seen, "micro_batches": micro_batches, "tested": tested}


def broken(record: list[dict]) -> list[str]:
    """The promises that the processes of a job do not keep."""
    found = ["schedule"] * any(each["collectives"] != record[0]["collectives"] for each in record)
    micro_batches = [part for each in record for part in each["micro_batches"] if part[2]]  # weight 0: joins the reduction
    for epoch in range(EPOCHS):
        ids = [number for step, ids, _ in micro_batches if step // STEPS == epoch for number in ids]
        found += ["training images"] * (sorted(ids) != list(range(61)))
    for step in range(EPOCHS * STEPS):
        weights = [weight for number, _, weight in micro_batches if number == step]
        found += ["weights"] * (not math.isclose(sum(weights), 1))
    for images, evaluations in ((23, EPOCHS), (61, 1)):
        seen = Counter(number for each in record for count, ids in each["tested"] if count == images for number in ids)
        found += ["test images"] * (seen != dict.fromkeys(range(images), evaluations))
    return sorted({*found})


def forked(body: str, place: Path) -> dict:
    """Content of the record.json that a function of this file writes, in a process of its own with its one process group."""
    code = f"import os; os.fsync = lambda _: None; import test_ranks; test_ranks.{body}(test_ranks.Path.cwd())"
    done = jobs.run("-c", code, cwd=place, env={"CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((place / "record.json").read_text())


def sound(place: Path) -> None:
    (place / "record.json").write_text(json.dumps(job(place)))


def faulty(place: Path) -> None:
    def one_more(run: Run) -> None:
        if run.rank == 3:
            run.stop_when = lambda step, batch: bool(step == 2 and torch.distributed.all_reduce(torch.zeros(1)))

    def another(run: Run) -> None:
        run.rank = 2 if run.rank == 5 else run.rank  # whose micro-batches are longer

    found = {name: broken(job(place / name, fault)) for name, fault in (("one more", one_more), ("another", another))}
    (place / "record.json").write_text(json.dumps(found))


def test_eight_processes_share_steps_and_evaluations(tmp_path):
    """All come to the same collectives; each image once an epoch and once an evaluation; the weights of a batch sum up to 1."""
    record = forked("sound", tmp_path)
    assert broken(record) == []
    assert len(record) == WORLD
    sums = [sizes for name, sizes, _ in record[0]["collectives"] if name == "allreduce_"]
    assert sums.count([[243]]) == 1 + EPOCHS * STEPS  # gradients: once more before the first step, see Step.warm_up
    assert sums.count([[2]]) == EPOCHS * STEPS  # loss and wish to stop
    others = [sizes for sizes in sums if sizes not in ([[243]], [[2]])]
    # Whether all see the same images; 12 batches, and again with the logits of the 23 test images; 31 batches.
    assert others == [[[]], [[26]], [[26]], [[23, 3]], [[64]]]
    last = [len([part for part in each["micro_batches"] if part[0] == STEPS - 1 and part[2]]) for each in record]
    assert last == [1, 0, 0, 0, 0, 0, 0, 0]


def test_control_a_process_that_does_other_than_its_part_is_noticed(tmp_path):
    """One that has a collective of its own; one that does another's part."""
    found = forked("faulty", tmp_path)
    assert found == {"one more": ["schedule"], "another": ["test images", "training images", "weights"]}


def two_machines_of_eight_gpus(place: Path) -> None:
    found = []
    for rank in range(16):
        with pytest.MonkeyPatch.context() as patch:
            cuda = {"is_available": True, "device_count": 8, "is_bf16_supported": True, "get_device_capability": (9, 0)}
            for name, value in cuda.items():
                patch.setattr(torch.cuda, name, lambda *_, value=value: value)
            patch.setattr(torch.accelerator, "is_available", lambda: True)
            chosen = []
            patch.setattr(torch.cuda, "set_device", chosen.append)
            environment = {"RANK": rank, "LOCAL_RANK": rank % 8, "WORLD_SIZE": 16, "LOCAL_WORLD_SIZE": 8, "MASTER_PORT": 1}
            for name, value in (environment | {"MASTER_ADDR": "x", "ACCELERATE_MIXED_PRECISION": "bf16"}).items():
                patch.setenv(name, str(value))
            torch.distributed.init_process_group("fake", rank=rank, world_size=16, store=FakeStore())
            here = accelerator()
            found.append([str(here.device), *map(str, chosen), here.process_index, here.num_processes, here.mixed_precision])
            torch.distributed.destroy_process_group()
            AcceleratorState._reset_state(True)
    (place / "record.json").write_text(json.dumps(found))


def test_each_process_has_a_gpu_of_its_machine(tmp_path):
    """With what torch's launcher sets on two machines of 8 GPUs, and launch/nodes.yaml's bf16."""
    expected = [[*[f"cuda:{rank % 8}"] * 2, rank, 16, "bf16"] for rank in range(16)]
    assert forked("two_machines_of_eight_gpus", tmp_path) == expected
