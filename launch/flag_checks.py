"""Numbers that flags take: those out of range are refused before anything is made."""

from collections.abc import Mapping
from typing import Any

from .errors import Refused
from .processes import cores
from .report import trackers

LEAST = {"limit": 0, "micro_batches": 0, "threads": 0, "save_every": 0, "eval_every": 1, "log_every": 0, "max_seconds": 0}
MOST, MOST_MICRO_BATCHES = 10**9, 2**16  # of a whole number; micro-batches are counted out at every step
MOST_VALIDATION = 0.9
BELOW_ONE = {"ema", "smoothing"}  # flags of recipes: an average that never follows its net, labels that say nothing


def check_flags(run: Any, options: Mapping[str, Any]) -> None:
    """Raise Refused (2) for a flag of `run`, a Run, or one of the recipe's `options` that is out of range."""
    for name, least in LEAST.items():
        if (value := getattr(run, name)) < least:
            raise Refused(f"--{_flag(name)} must be at least {least}, it is {_short(value)}", 2)
        if value > MOST:
            raise Refused(f"--{_flag(name)} is too large: {_short(value)}", 2)
    if run.micro_batches > MOST_MICRO_BATCHES:
        raise Refused(f"--micro-batches must be at most {MOST_MICRO_BATCHES:,}, it is {run.micro_batches:,}", 2)
    if run.validation is not None and not 0 <= run.validation <= MOST_VALIDATION:
        raise Refused(f"--validation must be from 0 to {MOST_VALIDATION}, it is {run.validation}", 2)
    for name, value in options.items():
        if isinstance(value, int | float) and not value >= 0:
            raise Refused(f"--{_flag(name)} must not be negative, it is {_short(value)}", 2)
        if isinstance(value, int | float) and value > MOST:
            raise Refused(f"--{_flag(name)} is too large: {_short(value)}", 2)
    for name in BELOW_ONE & options.keys():
        if options[name] >= 1:
            raise Refused(f"--{name} must be less than 1, it is {options[name]:g}", 2)
    if options.get("batch") == 0:  # here, as a recipe may take its folder before its training begins
        raise Refused("--batch must be at least 1, it is 0", 2)
    if len(run.track) != 1 and (not run.track or "none" in run.track):
        raise Refused(f"--track is none, or one or several trackers; it is {' '.join(run.track) or 'without a value'}", 2)
    if absent := trackers.missing(name for name in run.track if name in trackers.NAMES):
        raise Refused(f"--track {absent[0]} needs it: pip install {absent[0]}", 2)
    if run.threads > (most := max(64, 4 * cores())):
        raise Refused(f"--threads is {run.threads}; this machine takes {most} at most", 2)
    if not 0 <= run.seed < 2**63:
        raise Refused(f"--seed must be from 0 to 2**63 - 1, it is {_short(run.seed)}", 2)


def _flag(name: str) -> str:
    return name.replace("_", "-")


def _short(number: float) -> str:
    text = str(number)
    return text if len(text) <= 30 else f"{text[:12]}… of {len(text)} digits"
