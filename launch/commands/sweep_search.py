"""`oneloop sweep --search N`: Optuna proposes values from ranges, and only the better third of the runs gets more epochs.

Successive halving: a round of new configurations trains for the fewest epochs, the best third for three times as many, and so on.
A longer run continues the shorter one, bit for bit (launch/training/extend.py), if its learning rate does not depend on --epochs.
Each rung is a sweep like any other. Nothing is kept beside the run folders: the same command proposes the same values again, as
the sampler has a seed, and finds the finished runs. So a search that was killed goes on.
"""

import math
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from ..console import aligned
from ..errors import Refused, printable
from ..flag_checks import check_flags
from ..old_names import flags_of_today
from ..option_groups import apart
from ..report.runs import WORDS, measure_of, read_json, read_metrics
from ..run import OwnRun, Run
from .sweep_cells import Cell

THIRD = 3
ROUND = 9  # new configurations at a time, at least: the sampler learns from round to round
LOG_ABOVE = 10  # a range whose ends are more than this factor apart is searched by order of magnitude
DIGITS = 3  # of a proposed number: a command that can be typed
NON_FINITE = 3  # exit code of a run that diverged
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
RANGE = re.compile(rf"(?:(log|linear):)?({NUMBER})\.\.({NUMBER})")

Space = dict[str, Any]  # Optuna's distribution for each flag
CellsOf = Callable[[list[tuple[tuple[str, ...], str]]], list[Cell]]  # from flags and names


@dataclass(frozen=True)
class Configuration:
    """Proposed values, as flags, and Optuna's trial of them."""

    flags: tuple[str, ...]
    trial: Any


@dataclass(frozen=True)
class Reached(Configuration):
    """What a configuration reached in a run."""

    epochs: int
    cell: Cell
    accuracy: float | None  # on the validation images, after its best epoch; None: it diverged
    loss: float  # on them, after its last epoch: of two that are equally right the lower one is better


def search(
    path: Path, axes: Mapping[str, list[str]], number: int, parse: Callable[[Sequence[str]], tuple[Run, dict]], cells_of: CellsOf,
    run: Callable[[list[Cell]], dict[Cell, str]], launch: Sequence[str],
) -> None:  # fmt: skip
    """Try `number` configurations; print a table of them and the command of the best.

    `parse` reads a command line of the recipe, `run` runs cells and returns what became of those that did not finish. Raises
    Refused: wrong flags (2), runs that neither finished nor diverged (1), no validation images (2).
    """
    optuna = _optuna()
    varied = {flag: values for flag, values in axes.items() if len(values) > 1 or any(map(RANGE.fullmatch, values))}
    rungs = rungs_of(axes.get("--epochs", []))
    varied.pop("--epochs", None)
    space, fixed, seed = _space(optuna, axes, varied, parse)
    size = max(ROUND, THIRD ** (len(rungs) - 1))
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=size))
    for flag, distribution in space.items():
        print(f"{flag}: {_described(distribution)}")
    print(f"{number} configurations, {size} at a time; epochs: {', '.join(map(str, rungs))}", flush=True)
    reached: list[Reached] = []
    for begin in range(0, number, size):
        asked = [study.ask(space) for _ in range(min(size, number - begin))]
        left = [Configuration(_flags(trial.params), trial) for trial in asked]
        for rung, epochs in enumerate(rungs):
            print(f"round {begin // size + 1}, {epochs} epochs: {len(left)} configurations", flush=True)
            here = _run_rung(left, (*fixed, "--epochs", str(epochs)), epochs, cells_of, run)
            if rung and (anew := [one for one in here if not _continued(one.cell)]):
                print(
                    f"{len(anew)} of them began anew and did not continue the run of {rungs[rung - 1]} epochs; its log says why"
                )
            best = sorted((one for one in here if one.accuracy is not None), key=_rank)
            kept = best[: max(1, len(left) // THIRD)] if rung + 1 < len(rungs) else []
            for one in here:
                if one.accuracy is not None:
                    one.trial.report(one.accuracy, epochs)
                if one not in kept:
                    reached.append(one)
                    _tell(optuna, study, one, finished=rung + 1 == len(rungs))
            left = [Configuration(one.flags, one.trial) for one in kept]
            if not left:
                break
    _say(reached, rungs[-1], [*launch, str(path)])


def rungs_of(values: Sequence[str]) -> list[int]:
    """The numbers of epochs of "27", or of a range such as "3..27": each about three times the one before. Raises Refused (2)."""
    text = values[0] if len(values) == 1 else ""
    ends = RANGE.fullmatch(text)
    numbers = [ends[2], ends[3]] if ends and not ends[1] else [text]
    if not all(number.isdecimal() and int(number) for number in numbers) or int(numbers[-1]) < int(numbers[0]):
        raise Refused("--search needs --epochs: one number, or the fewest and, behind .., the most of a run, such as 3..27", 2)
    first, last = int(numbers[0]), int(numbers[-1])
    steps = max(1, round(math.log(last / first, THIRD))) if last > first else 0
    return [round(first * (last / first) ** (step / steps)) for step in range(steps)] + [last]


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise Refused(f"--search needs {error.name}: pip install optuna", 2) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _space(
    optuna: Any,
    axes: Mapping[str, list[str]],
    varied: Mapping[str, list[str]],
    parse: Callable[[Sequence[str]], tuple[Run, dict]],
) -> tuple[Space, tuple[str, ...], int]:
    """What is searched, the other flags, the seed. Raises Refused (2), or exits with 2 as the recipe does."""
    if not varied:
        raise Refused("--search has nothing to search: give a flag a range, such as --lr 1e-4..1e-1, or several values", 2)
    common = {f"--{field.name.replace('_', '-')}" for field in (*fields(Run), *fields(OwnRun)) if field.init} - {"--track"}
    if several := sorted(common & varied.keys()):
        raise Refused(f"{several[0]} must have one value in a search: it is the same for all its runs", 2)
    fixed = tuple(word for flag, values in axes.items() if flag not in {*varied, "--epochs"} for word in (flag, *values))
    ends: list[dict[str, Any]] = []
    for last in (0, 1):  # both ends of each range must be values that the recipe takes
        words = [word for flag, values in varied.items() for word in (flag, _end(flag, values, last))]
        run, options = parse([*fixed, *words])
        check_flags(run, apart(options))
        ends.append({})
        for name, value in options.items():
            ends[-1] |= vars(value) if is_dataclass(value) else {name: value}
    if not run.validation and not (run.validation is None and "test" in ends[0]):
        raise Refused("--search needs validation images, as the test images must not choose: add --validation 0.1", 2)
    space: Space = {}
    for flag, values in varied.items():
        name = flags_of_today([flag])[0].removeprefix("--").replace("-", "_")
        if not (bounds := RANGE.fullmatch(values[0])):
            space[flag] = optuna.distributions.CategoricalDistribution(values)
            continue
        low, high = (side[name] for side in ends)
        if not isinstance(low, int | float) or not low < high:
            raise Refused(f"{flag} {values[0]}: the range must go from a number to a larger one", 2)
        logarithmic = bounds[1] == "log" or (not bounds[1] and 0 < low < high / LOG_ABOVE)
        if logarithmic and low <= 0:
            raise Refused(f"{flag} {values[0]}: a range by order of magnitude must begin above 0", 2)
        kind = optuna.distributions.IntDistribution if isinstance(low, int) else optuna.distributions.FloatDistribution
        space[flag] = kind(low, high, log=logarithmic)
    return space, fixed, run.seed


def _end(flag: str, values: list[str], last: int) -> str:
    """The first or the last of a flag's values. Raises Refused (2) for a range among others."""
    ranges = [bounds for value in values if (bounds := RANGE.fullmatch(value))]
    if ranges and len(values) > 1:
        raise Refused(f"{flag} {' '.join(values)}: one range, or several values", 2)
    return ranges[0][2 + last] if ranges else values[-last]


def _described(distribution: Any) -> str:
    if hasattr(distribution, "choices"):
        return f"one of {', '.join(map(str, distribution.choices))}"
    whole = "whole numbers " if isinstance(distribution.low, int) else ""
    return f"{whole}from {distribution.low:g} to {distribution.high:g}{', by order of magnitude' if distribution.log else ''}"


def _flags(values: Mapping[str, Any]) -> tuple[str, ...]:
    texts = {flag: f"{value:.{DIGITS}g}" if isinstance(value, float) else str(value) for flag, value in values.items()}
    return tuple(word for pair in texts.items() for word in pair)


def _run_rung(
    configurations: list[Configuration], fixed: tuple[str, ...], epochs: int, cells_of: CellsOf,
    run: Callable[[list[Cell]], dict[Cell, str]],
) -> list[Reached]:  # fmt: skip
    """Run the configurations with the other flags `fixed`, which have these `epochs`."""
    flags = list(dict.fromkeys(configuration.flags for configuration in configurations))  # the same values may come twice
    cells = dict(zip(flags, cells_of([((*fixed, *words), " ".join(words)) for words in flags]), strict=True))
    left = run([cell for cell in cells.values() if not _diverged(cell)])
    if wrong := {cell: why for cell, why in left.items() if not _diverged(cell)}:
        for cell, why in wrong.items():
            print(f"{cell.name}: {printable(why)}", flush=True)
        raise Refused(f"{len(wrong)} of {len(cells)} runs are not finished; run the same command to go on")
    return [Reached(one.flags, one.trial, epochs, cells[one.flags], *_measured(cells[one.flags])) for one in configurations]


def _rank(one: Reached) -> tuple[float, float]:
    return -(one.accuracy or 0.0), one.loss


def _continued(cell: Cell) -> bool:
    return "started_from" in (read_json(cell.folder / "config.json") or {})


def _diverged(cell: Cell) -> bool:
    """Return whether the run ended by a loss, a gradient or weights that are not finite: the same again if it were run again."""
    return not cell.result() and (read_json(cell.folder / "stopped.json") or {}).get("code") == NON_FINITE


def _measured(cell: Cell) -> tuple[float | None, float]:
    """Accuracy (of several labels mAP) and loss on the validation images. Raises Refused (2) if there are none."""
    result = cell.result()
    if result is None:
        return None, math.inf
    if "test" not in result.get("best", {}):
        raise Refused(
            f"{cell.folder} has no validation images to choose by: --search needs them, and one training in each run", 2
        )
    losses = [event["loss"] for event in read_metrics(cell.folder / "metrics.jsonl") if event.get("split") == "validation"]
    return result["best"][measure_of(result["best"])], losses[-1]


def _tell(optuna: Any, study: Any, reached: Reached, finished: bool) -> None:
    """Tell the sampler what a configuration reached that gets no more epochs; `finished`: it has had all."""
    if reached.accuracy is None:
        study.tell(reached.trial, state=optuna.trial.TrialState.FAIL)
    elif finished:
        study.tell(reached.trial, reached.accuracy)
    else:
        study.tell(reached.trial, state=optuna.trial.TrialState.PRUNED)


def _say(reached: list[Reached], epochs: int, launch: list[str]) -> None:
    """Print the table, the best first: of those that had all `epochs`, by their accuracy on the validation images."""
    order = sorted(reached, key=lambda one: (one.accuracy is None, -one.epochs, *_rank(one)))
    rows = [("validation", "epochs", "configuration", "run")]
    for one in order:
        accuracy = "diverged" if one.accuracy is None else f"{one.accuracy:.4f}"
        rows.append((accuracy, str(one.epochs), " ".join(one.flags), str(one.cell.folder)))
    for line in aligned(rows):
        print(line)
    best = order[0]
    if best.epochs < epochs or best.accuracy is None:
        raise Refused("all configurations diverged: a smaller --lr is the usual cure", NON_FINITE)
    measured = (best.cell.result() or {})["best"]
    measure = measure_of(measured)
    print(
        f"best: {' '.join(best.flags)}: validation {WORDS[measure]} {best.accuracy:.4f} after epoch {measured['epoch']}, "
        f"test {WORDS[measure]} {measured['test'][measure]:.4f}",
        shlex.join(["accelerate", *launch, *best.cell.flags]),
        sep="\n",
    )
