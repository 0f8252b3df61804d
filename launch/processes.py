"""A run's processes: who they are, how they start, how long they wait for one another, and what ends them.

Parallelism and precision are accelerate's business: they come from `accelerate launch`, never from here.
"""

import contextlib
import ctypes
import os
import platform
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from types import FrameType

import torch
import torch.distributed
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.utils import parse_flag_from_env
from torch import Tensor

from .console import complain
from .errors import Refused, first_line

START_SECONDS = 1800  # that a process waits for another before the first step: compilation, and data on a slow disk
SILENCE_SECONDS = 300  # and after it: longer than anything that a process does alone in a run
ANSWER_SECONDS = 5  # that a process waits to hear whether another has said the same
LAUNCHERS = {"ACCELERATE_DYNAMO_BACKEND", "TORCHELASTIC_RUN_ID"}  # what torch's and accelerate's set, one or both
NUMBERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT", "TORCHELASTIC_MAX_RESTARTS")
MPI = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")  # what accelerate would look at


def accelerator(precision: str | None = None) -> Accelerator:
    """The Accelerator, or Refused where a launcher's settings do not give what they seem to. `precision` None: the launcher's."""
    env = os.environ
    _check_numbers()
    if "MASTER_ADDR" in env and "WORLD_SIZE" not in env:
        raise Refused(
            "accelerate was told to start several processes and started one (--cpu and MULTI_CPU do that); "
            "use accelerate launch --config_file launch/cpus.yaml",
            2,
        )
    world = int(env.get("WORLD_SIZE", 1))
    if world > 1 and (missing := [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in env]):
        raise Refused(
            f"WORLD_SIZE is {world} but {', '.join(missing)} is not set: each process would think it is the only one; "
            "use accelerate launch --config_file launch/cpus.yaml (or launch/gpus.yaml)",
            2,
        )
    if world == 1:
        _forget_launcher()
    for name in ("DEEPSPEED", "FSDP", "MEGATRON_LM"):
        if env.get(f"ACCELERATE_USE_{name}", "").lower() == "true":
            raise Refused(f"ACCELERATE_USE_{name} is set; the loop supports one process, or DDP", 2)
    if env.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1") != "1":
        raise Refused("ACCELERATE_GRADIENT_ACCUMULATION_STEPS is not recorded with the run; use the recipe's --micro-batches", 2)
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
    on_cpu = uses_cpu()
    if (precision or wanted) == "fp16" and on_cpu:  # accelerate would say fp16, and compute float32
        raise Refused("fp16 needs a GPU; on a CPU use --mixed_precision bf16 or no", 2)
    # Precision "no" is float32: cuDNN's convolutions would take TF32, of 10 bits, for it. By the older of torch's two ways to say
    # so: torch.export reads these and fails where the newer one was used.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    if not on_cpu and torch.cuda.is_available():
        device = int(env.get("LOCAL_RANK", 0))
        if (precision or wanted) == "bf16" and only_emulates_bf16(torch.cuda.get_device_capability(device)):
            precision = "fp16"
            if main_here():
                complain(f"{torch.cuda.get_device_name(device)} only emulates bf16: fp16 is used, and recorded as the precision")
    if on_cpu and precision is None and wanted == "bf16" and cpu_only_emulates_bf16():
        precision = "no"
        if main_here():
            complain(
                "this CPU only emulates bf16 (it has neither AVX512-BF16 nor AMX), which is several times slower than float32: "
                "float32 is used, and recorded as the precision (no)"
            )
    if world > 1 and not LAUNCHERS & env.keys():
        complain(f"WORLD_SIZE is {world}: waits for the others at {env['MASTER_ADDR']}; to run alone, unset WORLD_SIZE")
    # Buffers: batch norm's statistics follow micro-batch 0, see step.py; DDP's own broadcast would depend on the placement.
    buffers = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    patience = InitProcessGroupKwargs(timeout=timedelta(seconds=START_SECONDS))
    try:
        accelerator = Accelerator(cpu=on_cpu, mixed_precision=precision, log_with="wandb", kwargs_handlers=[buffers, patience])
    except ValueError as error:  # of a variable that only accelerate reads
        raise Refused(f"accelerate cannot start ({first_line(error)}); look at what the environment says to it", 2) from error
    if world != accelerator.num_processes:
        raise Refused(
            f"{world} processes were started and each sees a world size of {accelerator.num_processes}; "
            "use accelerate launch --config_file launch/cpus.yaml (or launch/gpus.yaml)",
            2,
        )
    return accelerator


def _check_numbers() -> None:
    """Raise Refused (2) for what no launcher says of its processes."""
    env = os.environ
    for name in (*NUMBERS, *MPI):
        if name in env and not (env[name].isdecimal() and len(env[name]) < 10):
            raise Refused(f"{name} is {env[name]!r} in the environment, and no number; unset it, or use accelerate launch", 2)
    world = max(1, int(env.get("WORLD_SIZE", 1)))
    here = min(world, int(env.get("LOCAL_WORLD_SIZE", world)))
    for name, most in (("RANK", world - 1), ("LOCAL_RANK", max(0, here - 1)), ("MASTER_PORT", 65_535)):
        if int(env.get(name, 0)) > most:
            size = f" of {world} processes" if name != "MASTER_PORT" else ""
            raise Refused(f"{name} is {env[name]}{size} in the environment; unset what a launcher has left there", 2)
    if world == 1 and (several := [f"{name} is {env[name]}" for name in MPI if int(env.get(name, 1)) > 1]):
        raise Refused(
            f"{several[0]} in the environment, but MPI's processes do not train together here: "
            "use accelerate launch --config_file launch/cpus.yaml (or launch/gpus.yaml), or unset it",
            2,
        )


def _forget_launcher() -> None:
    """Forget a launcher's variables: a single process that no launcher has placed among others does not look for them."""
    if not launched():
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
            os.environ.pop(name, None)


def launched() -> bool:
    """Return whether a launcher has given this process a place among others."""
    return all(name in os.environ for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))


def first_here() -> bool:
    """Return whether this is the first process of its machine, as far as its launcher says."""
    return not launched() or os.environ["LOCAL_RANK"] == "0"


def main_here() -> bool:
    """Return whether this is the main process of its job, as far as its launcher says."""
    return not launched() or os.environ["RANK"] == "0"


def only_emulates_bf16(capability: tuple[int, int]) -> bool:
    """Return whether a GPU of this compute capability only emulates bf16: Ampere, 8.0, was the first to compute in it."""
    return capability < (8, 0)


def cpu_only_emulates_bf16() -> bool:
    """Return whether an x86 CPU, or the part of it that oneDNN may use, has no instructions for bf16: it would be slow."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return False  # not known
    allowed = (os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "").upper()
    older = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI")
    return allowed in older or not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def uses_cpu() -> bool:
    """Return whether accelerate takes the CPU: there is no accelerator, or it was told to. Raises Refused (2)."""
    try:
        told = parse_flag_from_env("ACCELERATE_USE_CPU")
    except ValueError as error:
        raise Refused(f"ACCELERATE_USE_CPU is {os.environ['ACCELERATE_USE_CPU']!r}; it takes true or false", 2) from error
    return told or not torch.accelerator.is_available() or os.environ.get("ACCELERATE_TORCH_DEVICE", "").startswith("cpu")


def precision_here(wanted: str) -> str:
    """Precision that a run launched in precision `wanted` computes in here: on a CPU that only emulates bf16, float32."""
    return "no" if wanted == "bf16" and uses_cpu() and cpu_only_emulates_bf16() else wanted


def use_deterministic_kernels() -> None:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA is first used
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # all that is read was written


def set_timeout(seconds: float) -> None:
    """Set how long this process waits for the others in a collective, from now on."""
    distributed = torch.distributed
    change = getattr(distributed, "set_timeout", None) or distributed.distributed_c10d._set_pg_timeout  # torch < 2.15
    change(timedelta(seconds=seconds), distributed.group.WORLD)


def end_startup(accelerator: Accelerator) -> None:
    """Wait SILENCE_SECONDS at most for another process from now on: all have compiled and warmed up. Collective."""
    accelerator.wait_for_everyone()  # collective: else a fast process gives up on one that still compiles
    set_timeout(SILENCE_SECONDS)


@torch.no_grad()
def broadcast(tensors: Iterable[Tensor], world: int) -> None:
    """Copy the main process's `tensors` into every process's, as many and of the same shapes. Collective."""
    for tensor in tensors if world > 1 else ():
        torch.distributed.broadcast(tensor, 0)  # collective


def any_process(wish: bool, world: int, device: torch.device) -> bool:
    """Return whether `wish` is true on any process. Collective."""
    wishes = torch.tensor(float(wish), device=device)
    if world > 1:
        torch.distributed.all_reduce(wishes)  # collective
    return wishes.item() > 0  # host-device sync


@contextlib.contextmanager
def lost_process(world: int, device: str, step: Callable[[], int] | None = None) -> Iterator[None]:
    """Make the loss of another process, or full memory, a Refused (1) that names the step, on those that are left.

    `step` gives the number of steps made; without it, it is during start-up, or between two trainings.
    """
    try:
        yield
    except RuntimeError as error:
        moment, silence = (f"at step {step() + 1:,}", SILENCE_SECONDS) if step else ("during start-up", START_SECONDS)
        if "does not have a deterministic implementation" in str(error):
            what, _, _ = first_line(error).partition(" does not")
            raise Refused(f"{what} has no deterministic kernel: leave out --deterministic, or change the net", 2) from error
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            way = "use a smaller --batch or --size, or more --micro-batches"
            raise Refused(f"out of memory on {device} {moment}; {way}", 1) from error
        if world == 1 or not (isinstance(error, torch.distributed.DistError) or "gloo" in str(error)):
            raise
        raise LostProcess(
            f"another process died, or was silent for {silence} s, {moment} "
            f"({first_line(error).split('] ')[-1]}); run the same command to resume from the last checkpoint"
        ) from error
    finally:
        if world > 1 and torch.distributed.is_initialized():
            set_timeout(START_SECONDS)


class LostProcess(Refused):
    """Another process died or is silent. Those that are left say so in their own words."""


def first_to_say(error: Refused) -> bool:
    """Return whether no other process of this machine has said this, or that one is lost. Each asks for itself."""
    distributed, env = torch.distributed, os.environ
    if not distributed.is_initialized():
        return first_here()
    what = LostProcess.__name__ if isinstance(error, LostProcess) else str(error)
    place = "/".join((env.get("GROUP_RANK", ""), env.get("TORCHELASTIC_RESTART_COUNT", ""), what))
    store, answer = distributed.distributed_c10d._get_default_store(), list[int]()

    def ask() -> None:
        with contextlib.suppress(RuntimeError):  # the store ended with the process that had it
            answer.append(store.add(place, 1))

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(ANSWER_SECONDS)  # a machine that was cut off gets no answer, and torch would wait for it without an end
    return answer in ([], [1])


def end_with_launcher() -> None:
    """End this process with a line on SIGTERM, until a training handles it: launchers send it when another process has died."""

    def ended(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)
        said = "stopped by SIGTERM during start-up: another process died, or the launcher was told to stop"
        if first_to_say(LostProcess(said)):
            complain(f"{said}; run the same command again")
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, ended)


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory instead of giving each activation back to the system and faulting it in anew.

    Measured on a 2-core CPU: a step of `Net` with 64 images takes about two thirds of the time, one of `FastNet` with 2,000,
    whose activations take 100 MB and more each, three quarters. The most memory is 10 to 20 % more. Elsewhere a no-op.
    """
    if platform.libc_ver()[0] == "glibc":
        m_mmap_max, m_mmap_threshold, m_trim_threshold = -4, -3, -1
        with contextlib.suppress(AttributeError, OSError):
            libc = ctypes.CDLL(None)
            libc.mallopt(m_mmap_max, 0)  # blocks above the largest threshold that there is, 32 MiB, stay, too
            libc.mallopt(m_mmap_threshold, 32 << 20)
            libc.mallopt(m_trim_threshold, 2**31 - 1)


def give_back_freed_memory() -> None:
    """Have glibc give back the memory that it has kept so far. Elsewhere a no-op.

    Steps and evaluations need blocks of different sizes, which it does not fit into each other's holes: what it keeps grows.
    """
    if platform.libc_ver()[0] == "glibc":
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).malloc_trim(0)
