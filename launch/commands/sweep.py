"""`oneloop sweep`: run a grid of a recipe's flags. Each cell is the recipe's ordinary command in its default run folder.

The grid is made here (axes_of, grid); sweep_cells.py runs it on this machine, sweep_ray.py and sweep_slurm.py on others.
"""

import argparse
import itertools
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import Refused, first_line, printable
from ..report import paired
from ..report.compare import compare
from .arguments import add_recipe, launch_file
from .sweep_cells import Cell, run

if TYPE_CHECKING:
    from ..run import Run

WHOLE = ("--track",)  # flags that take several values in one run
MOST = 10**5  # runs at once, cores, GPUs


def main(args: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "oneloop sweep",
        usage="oneloop sweep RECIPE [the recipe's own flags, several values for some] [--at-once N] [--config_file FILE] "
        "[--on ray|slurm [--cpus N] [--gpus N]] [--compare FOLDER]\n"
        "       oneloop sweep RECIPE --search N --epochs 3..27 --validation 0.1 [flags, several values or a range for some] […]",
        description="Run a recipe for each combination of the values given, then compare the runs. The same command\n"
        "resumes a sweep: finished runs are skipped, interrupted ones resumed. A run that fails is named at the\n"
        "end and does not stop the rest.\n\n"
        "--search N tries N configurations from ranges, which Optuna proposes, and gives only the better third of them\n"
        "three times the epochs, from the fewest to the most of --epochs 3..27; validation images choose. A longer run\n"
        "continues the shorter one. --lr 1e-4..1e-1: a range of more than a factor of 10 is searched by order of\n"
        "magnitude; log:0.1..0.5 and linear:0..64 say so. --net Net NetWidth: one of them. The search ends with a table\n"
        "and the command of the best.",
        epilog="example: oneloop sweep recipes/cifar2.py --net Net NetWidth NetBatchNorm --lr 0.01 0.03 --seed 0 1 2\n"
        "the recipe's flags: python RECIPE --help; progress, meanwhile: oneloop runs",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_recipe(parser)
    parser.add_argument("--at-once", type=int, metavar="N", help="runs at a time; default: 1 here, sharing cores and GPUs")
    parser.add_argument(
        "--config_file", type=launch_file, metavar="FILE", help="accelerate's config for each run, such as launch/gpu.yaml"
    )
    parser.add_argument("--search", type=int, metavar="N", help="configurations to try, by Optuna, instead of the whole grid")
    parser.add_argument("--compare", type=Path, default="compare", metavar="FOLDER", help="for the plots; default: compare")
    others = parser.add_argument_group("on other machines, which share this folder: docs/scale.md")
    others.add_argument("--on", metavar="WHERE", help="ray, or ray://HOST:PORT: a Ray cluster; slurm: a job array")
    others.add_argument("--cpus", type=int, metavar="N", help="cores of each run; default: one for each of its processes")
    others.add_argument("--gpus", type=int, metavar="N", help="GPUs of each run; default: 0")
    chosen, words = parser.parse_known_args(args)
    axes, launch = axes_of(words), ["launch", *(["--config_file", chosen.config_file] if chosen.config_file else [])]
    precision, processes = launched(chosen.config_file)
    cpus, gpus = _shares(chosen, processes)
    if chosen.on and "--threads" not in axes:
        axes["--threads"] = [str(max(1, cpus // max(gpus, processes)))]
    at_once = 1 if chosen.on else chosen.at_once or 1
    if chosen.search is not None:
        return _search(chosen, shared(axes, at_once, processes), launch, precision, processes, cpus, gpus)
    cells = grid(chosen.recipe, axes, at_once, chosen.config_file, here=not chosen.on)
    if chosen.on == "slurm":
        from .sweep_slurm import submit

        return submit(chosen.recipe, cells, precision, processes, cpus, gpus, chosen.at_once)
    left = _run(chosen, cells, launch, processes, cpus, gpus)

    from .compare import draw, show

    old = {cell for cell in left if cell.stale}  # their results are of other data
    if begun := [cell.folder for cell in cells if cell not in old and (cell.folder / "config.json").exists()]:
        try:
            comparison, complaints = compare(begun)
            found = paired.pairs(comparison)
            show(comparison, found)
            draw(comparison, found, chosen.compare)
        except Refused as error:  # no run can be read: they are named below, as failed
            complaints = [str(error)]
        for complaint in complaints:
            print(printable(complaint), file=sys.stderr)
    for cell, why in left.items():
        print(
            printable(why), f"  {shlex.join(['accelerate', *launch, str(chosen.recipe), *cell.flags])}", sep="\n", file=sys.stderr
        )
    if left:
        what = "failed" if all(why.startswith("failed: ") for why in left.values()) else "are not finished"
        raise Refused(f"{len(left)} of {len(cells)} runs {what}; run the same command to try them again")


def _run(
    chosen: argparse.Namespace, cells: Sequence[Cell], launch: list[str], processes: int, cpus: int, gpus: int
) -> dict[Cell, str]:
    """Run the cells here or on a Ray cluster; what became of each that did not finish. `launch` gets what this machine needs."""
    if chosen.on:
        from .sweep_ray import run_on_ray

        return run_on_ray(cells, [*launch, str(chosen.recipe)], chosen.on, cpus, gpus)
    visible = _gpus() if processes == 1 else []
    if len(visible) > 1 and not chosen.config_file and "--num_processes" not in launch:
        launch += ["--num_processes", "1"]  # accelerate's default is one on each GPU
    return run(cells, [*launch, str(chosen.recipe)], chosen.at_once or 1, visible)


def _search(
    chosen: argparse.Namespace,
    axes: dict[str, list[str]],
    launch: list[str],
    precision: str,
    processes: int,
    cpus: int,
    gpus: int,
) -> None:
    """`--search`: see sweep_search.py."""
    from ..command_line import parse
    from ..recipe import load
    from .sweep_search import search
    from .sweep_slurm import run_in_queue

    if not 1 <= chosen.search <= MOST:
        raise Refused(f"--search must be from 1 to {MOST:,}, it is {chosen.search}", 2)
    main, path = load(chosen.recipe).main, chosen.recipe

    def run_cells(cells: list[Cell]) -> dict[Cell, str]:
        if chosen.on == "slurm":
            return run_in_queue(path, cells, precision, processes, cpus, gpus, chosen.at_once)
        return _run(chosen, cells, launch, processes, cpus, gpus)

    def cells_of(combinations: list[tuple[tuple[str, ...], str]]) -> list[Cell]:
        return cells_for(path, combinations, chosen.config_file, here=not chosen.on)

    search(path, axes, chosen.search, lambda words: parse(main, words, prog=f"oneloop sweep {path}"), cells_of, run_cells, launch)


def _shares(chosen: argparse.Namespace, processes: int) -> tuple[int, int]:
    """Cores and GPUs of each run elsewhere, which has `processes`.

    Raises Refused (2) for a number or a place that does not fit the others.
    """
    for name, least in {"at_once": 1, "cpus": 1, "gpus": 0}.items():
        if (given := getattr(chosen, name)) is not None and given < least:
            raise Refused(f"--{name.replace('_', '-')} must be at least {least}, it is {given}", 2)
        if given is not None and given > MOST:
            raise Refused(f"--{name.replace('_', '-')} must be at most {MOST:,}, it is {given}", 2)
    if not chosen.on and (chosen.cpus, chosen.gpus) != (None, None):
        raise Refused("--cpus and --gpus belong to --on; here --at-once and --threads share the machine", 2)
    if chosen.on and chosen.on not in ("ray", "slurm") and not re.fullmatch(r"ray://[^/:]+:\d+", chosen.on):
        raise Refused(f"--on is ray, ray://HOST:PORT or slurm, not {chosen.on}", 2)
    if chosen.on and chosen.on != "slurm" and chosen.at_once:
        raise Refused("with --on ray the cluster's cores and GPUs say how many run at once: leave out --at-once", 2)
    if (gpus := chosen.gpus or 0) > 1 and not chosen.config_file:
        raise Refused(f"--gpus {gpus} needs --config_file launch/gpus.yaml: a process for each of a run's GPUs", 2)
    return chosen.cpus or max(gpus, processes), gpus


def axes_of(words: Sequence[str]) -> dict[str, list[str]]:
    """The values after each flag; empty for a flag without a value. Raises Refused (2)."""
    axes: dict[str, list[str]] = {}
    for word in words:
        if word.startswith("--"):
            flag, given, value = word.partition("=")
            flag = flag.replace("_", "-")
            if flag in axes:
                raise Refused(f"{flag} is given twice; list all its values after one {flag}", 2)
            if flag in ("--out", "--fresh"):
                raise Refused(f"{flag} is for a single run; a sweep uses the default run folders, so that it can resume", 2)
            axes[flag] = [value] if given else []
        elif axes:
            axes[next(reversed(axes))].append(word)
        else:
            raise Refused(f"{word} does not follow a flag", 2)
    return axes


def grid(path: Path, axes: dict[str, list[str]], at_once: int, config_file: str | None, here: bool = True) -> list[Cell]:
    """A cell for each combination, the last axis varying fastest; `here`: for this machine.

    Parses each command line: raises Refused, or exits with 2.
    """
    axes = shared(axes, at_once, launched(config_file)[1])
    words: list[list[tuple[str, ...]]] = [
        [(flag, *values)] if flag in WHOLE else [(flag, value) for value in values] or [(flag,)] for flag, values in axes.items()
    ]
    combinations: list[tuple[tuple[str, ...], str]] = []
    for pairs in itertools.product(*words):
        varied = [pair for pair in pairs if len(axes[pair[0]]) > 1 and pair[0] not in WHOLE]
        combinations.append((tuple(itertools.chain(*pairs)), " ".join(itertools.chain(*(varied or pairs)))))
    return cells_for(path, combinations, config_file, here)


def shared(axes: dict[str, list[str]], at_once: int, processes: int) -> dict[str, list[str]]:
    """`axes`, with --threads if several runs at once share this machine's cores."""
    from ..processes import cores

    if at_once > 1 and "--threads" not in axes:
        return axes | {"--threads": [str(max(1, cores() // (at_once * processes)))]}
    return axes


def cells_for(path: Path, combinations: Sequence[tuple[tuple[str, ...], str]], config_file: str | None, here: bool) -> list[Cell]:
    """A cell for each combination, its flags and its name. Raises Refused, or exits with 2, as `grid` does."""
    from ..command_line import parse
    from ..processes import precision_here
    from ..recipe import load
    from ..source_copy import sources

    recipe, precision = load(path), launched(config_file)[0]
    precision = precision_here(precision) if here else precision
    code = sources(recipe)
    cells: dict[Path, Cell] = {}
    for flags, name in combinations:
        asked, options = parse(recipe.main, flags, prog=f"oneloop sweep {path}")
        asked.configure(path.stem, options, precision)
        asked.code = code
        result = asked.take_folder(asked.find_folder())
        if asked.folder in cells:
            raise Refused(f"{name} and {cells[asked.folder].name} are the same run", 2)
        cells[asked.folder] = Cell(flags, name, asked.folder, stale=bool(result) and _stale(recipe.main, asked, options))
    return list(cells.values())


def _stale(main: Callable[..., None], finished: "Run", options: dict[str, Any]) -> bool:
    """Return whether a finished run has other data now; if that cannot be said, print why not."""
    try:
        if unknown := finished.compare_data(main, options):
            print(printable(f"{finished.folder}: its data cannot be compared with those of now: {unknown}"), file=sys.stderr)
    except Exception:  # whatever it is, the run itself says it
        return True
    return False


def launched(config_file: str | None) -> tuple[str, int]:
    """Precision and number of processes that `accelerate launch` reads from the file, by default from the user's own config."""
    from accelerate.commands.config.config_args import default_config_file, load_config_from_file

    if config_file is None and not os.path.isfile(default_config_file):
        return "no", 1
    try:
        config = load_config_from_file(config_file)
    except Exception as error:  # a missing file, or anything wrong in a YAML file
        raise Refused(f"--config_file {config_file or default_config_file}: {first_line(error)}", 2) from error
    processes = getattr(config, "num_processes", 1)
    return config.mixed_precision or "no", processes if isinstance(processes, int) and processes > 0 else 1


def _gpus() -> list[str]:
    """The visible GPUs, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",") if given else [str(number) for number in range(torch.cuda.device_count())]
