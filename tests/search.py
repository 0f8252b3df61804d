"""For tests of `oneloop sweep --search`: runs in this process, and a stand-in for Optuna, which is heavy."""

import random
import sys
from types import SimpleNamespace

import pytest
from trained import train_here

from launch.commands import main, sweep


class Study:
    """Draws from its seed alone, and keeps what it is told."""

    def __init__(self, seed):
        self.random, self.told = random.Random(seed), []

    def ask(self, space):
        return SimpleNamespace(params={flag: draw(self.random) for flag, draw in space.items()}, report=lambda *_: None)

    def tell(self, trial, value=None, state="COMPLETE"):
        self.told.append((tuple(trial.params.values()), value, state))


def _number(whole):
    def distribution(low, high, log):
        def draw(source):
            value = low * (high / low) ** source.random() if log else source.uniform(low, high)
            return round(value) if whole else value

        draw.low, draw.high, draw.log = low, high, log
        return draw

    return distribution


def _one_of(choices):
    def draw(source):
        return source.choice(choices)

    draw.choices = choices
    return draw


studies: list[Study] = []
OPTUNA = SimpleNamespace(
    logging=SimpleNamespace(set_verbosity=lambda _: None, WARNING=0),
    distributions=SimpleNamespace(
        FloatDistribution=_number(False), IntDistribution=_number(True), CategoricalDistribution=_one_of
    ),
    samplers=SimpleNamespace(TPESampler=lambda seed, n_startup_trials: seed),
    trial=SimpleNamespace(TrialState=SimpleNamespace(FAIL="FAIL", PRUNED="PRUNED")),
    create_study=lambda direction, sampler: studies.append(Study(sampler)) or studies[-1],
)


def run_here(chosen, cells, *_):
    """As sweep._run, in this process: the name of each run that is started is printed."""
    left = {}
    for cell in cells:
        if not cell.result():
            print(f"started {cell.folder.name}", flush=True)
            try:
                train_here(chosen.recipe, *cell.flags, "--track", "none")
            except SystemExit as end:
                left[cell] = f"failed: exit code {end.code}"
    return left


def search(recipe, *words) -> int:
    """`oneloop sweep RECIPE --search …` with runs in this process, few images and no plots; the exit code."""
    from launch.sources import synthetic

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "optuna", OPTUNA)
        patch.setattr(sweep, "_run", run_here)
        patch.setattr("launch.report.show.show", lambda *_: None)
        patch.setitem(synthetic.COUNTS, "train", 96)
        patch.setitem(synthetic.COUNTS, "test", 20)
        return main(["sweep", str(recipe), "--data", "synthetic", *map(str, words)])
