"""`oneloop sweep --on slurm`: a job array with a task for each run: launch/slurm.sh, which saves, requeues and resumes."""

import hashlib
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import Refused, first_line
from ..files import write_atomically
from ..report.runs import in_use
from ..run import Run
from .sweep_cells import Cell, unfinished

SLURM = Path(__file__).parents[1] / "slurm.sh"


def submit(
    recipe: Path, cells: Sequence[Cell], precision: str, processes: int, cpus: int, gpus: int, at_once: int | None,
    wait: bool = False,
) -> None:  # fmt: skip
    """Write the array's script beside the run folders, and submit it: a task for each cell that is neither finished nor running.

    With `wait`, until its tasks have ended. Raises Refused: no sbatch (2), or sbatch's own words (1).
    """
    todo = {number: cell for number, cell in enumerate(cells, 1) if not cell.result() and not in_use(cell.folder)}
    print(f"{len(cells)} runs, {len(todo)} of them to submit: the others are finished or running", flush=True)
    if not todo:
        if not wait:
            print("the same command without --on compares them")
        return
    text = script(recipe, cells, todo, precision, max(processes, gpus), cpus, gpus, at_once)
    path = cells[0].folder.parent / f"sweep-{hashlib.sha256(text.encode()).hexdigest()[:8]}.sh"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode())
    except OSError as error:
        raise Refused(f"cannot write {path}: {error.strerror or error}") from error
    print(path, flush=True)
    if not shutil.which("sbatch"):
        raise Refused(f"--on slurm needs sbatch on the PATH: on a login node, sbatch {path}", 2)
    done = subprocess.run(["sbatch", *(["--wait"] if wait else []), str(path)], capture_output=True, text=True)
    if done.returncode and not (wait and done.stdout.strip()):  # with --wait it is also that of a task
        raise Refused(f"sbatch {path}: {first_line(RuntimeError(done.stderr)) if done.stderr.strip() else 'failed'}")
    if wait:
        return
    print(
        done.stdout.strip() or "submitted", "progress: oneloop runs; then the same command without --on compares them", sep="\n"
    )


def run_in_queue(
    recipe: Path, cells: Sequence[Cell], precision: str, processes: int, cpus: int, gpus: int, at_once: int | None
) -> dict[Cell, str]:
    """Submit the cells, and wait until the queue has run them. Returns what became of each that did not finish."""
    submit(recipe, cells, precision, processes, cpus, gpus, at_once, wait=True)
    return {cell: what for cell in cells if (what := unfinished(cell, 0, ""))}


def script(
    recipe: Path, cells: Sequence[Cell], todo: dict[int, Cell], precision: str, processes: int, cpus: int, gpus: int,
    at_once: int | None,
) -> str:  # fmt: skip
    """The text of the array's script: all cells, of which the array names those in `todo`."""
    log = cells[0].folder.parent / "sweep-%A-%a.log"
    together = f"%{at_once}" if at_once else ""
    lines = [
        "#!/bin/bash",
        f"# oneloop sweep {recipe} --on slurm: {len(cells)} runs, each a task of this array. To submit it again: sbatch FILE",
        "# Partition, account, time limit: SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_TIMELIMIT in the environment, or lines here.",
        f"#SBATCH --job-name=sweep-{recipe.stem}",
        f"#SBATCH --array={','.join(map(str, todo))}{together}",
        "#SBATCH --nodes=1",
        "#SBATCH --ntasks-per-node=1",
        f"#SBATCH --cpus-per-task={cpus}",
        *([f"#SBATCH --gpus-per-node={gpus}"] if gpus else []),
        "#SBATCH --signal=B:USR1@90  # 90 seconds before the limit: time for the current step and a checkpoint",
        "#SBATCH --requeue",
        "#SBATCH --open-mode=append",
        f"#SBATCH --output={log}",
        "set -euo pipefail",
        "",
        f"export ACCELERATE_MIXED_PRECISION={precision} PROCESSES_PER_NODE={processes}",
        *([] if gpus else ["export ACCELERATE_USE_CPU=true"]),
        f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH  # its torchrun; or set VENV=FOLDER",
        "case $SLURM_ARRAY_TASK_ID in",
    ]
    for number, cell in enumerate(cells, 1):
        # launch/slurm.sh gives a task its number as seed, unless a seed follows
        flags = cell.flags if "--seed" in cell.flags else (*cell.flags, "--seed", str(Run.seed))
        lines.append(f"{number}) export RUN={shlex.quote(str(cell.folder))}; set -- {shlex.join(flags)} ;;")
    lines += ["esac", f'exec bash {shlex.quote(str(SLURM))} {shlex.quote(str(recipe))} "$@"', ""]
    return "\n".join(lines)
