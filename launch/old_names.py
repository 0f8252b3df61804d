"""Names of version 0.2 that have changed since: its flags, run folders, checkpoints and weights are read by those of today.

What is hashed (the name of a run's folder, the origin of a checkpoint) is hashed by the old names, so that it stays the same.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

OPTIONS = {"shards": "micro_batches", "stored": "cache_size", "remedy": "method"}  # of a run: flags, and keys of config.json
RECIPES = {"pictures": "custom", "remedies": "ablations"}
# Options that runs from before them lack, with the value that means what those did: see `later`.
LATER = {"views": 0, "average": True, "layer_decay": 1.0, "head_epochs": 0}
_FIRST = {new: old for old, new in OPTIONS.items()}


def options_of_today(record: Mapping[str, Any]) -> dict[str, Any]:
    """`record`, its keys by today's names: a configuration, or what a weights file says of its net."""
    renamed = {OPTIONS.get(name, name): value for name, value in record.items()}
    if isinstance(recipe := renamed.get("recipe"), str):
        renamed["recipe"] = recipe_of_today(recipe)
    return renamed


def recipe_of_today(name: str) -> str:
    """A recipe's name."""
    return RECIPES.get(name, name)


def record_of_today(record: Mapping[str, Any]) -> dict[str, Any]:
    """Content of a config.json, by today's names."""
    renamed = options_of_today(record)
    if isinstance(options := renamed.get("config"), dict):
        renamed["config"] = options_of_today(options)
    if isinstance(file := renamed.get("recipe_file"), str) and (path := Path(file)).stem in RECIPES:
        renamed["recipe_file"] = str(path.with_stem(RECIPES[path.stem]))
    return renamed


def later(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a run with `options` may lack, being from before them, with the values that it had: not hashed."""
    # A net that is frozen saw new views of an image in each epoch then, which no number of views means now.
    return {name: value for name, value in LATER.items() if name != "views" or options.get("mode") not in ("frozen", "gradual")}


def first_name(recipe: str) -> str:
    """The name that a recipe had first."""
    return {new: old for old, new in RECIPES.items()}.get(recipe, recipe)


def options_to_hash(options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` by the names that they had first, without those that came later and are as before."""
    renamed = {_FIRST.get(name, name): value for name, value in options.items() if (name, value) not in later(options).items()}
    return renamed | ({"recipe": first_name(renamed["recipe"])} if "recipe" in renamed else {})


def flags_of_today(words: Sequence[str]) -> list[str]:
    """A command line, its flags by today's names."""
    flags = {f"--{old.replace('_', '-')}": f"--{new.replace('_', '-')}" for old, new in OPTIONS.items()}

    def renamed(word: str) -> str:
        flag, equals, value = word.partition("=")
        return flags.get(flag, flag) + equals + value

    return [renamed(word) for word in words]
