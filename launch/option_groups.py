"""Flags that several commands share are a dataclass. They are recorded one by one, by their own names, as if they were not.

A parameter of a recipe's `main` whose default is a dataclass is such a group: a section of its help.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any


def groups(main: Callable[..., Any]) -> dict[str, Any]:
    """The groups of flags that `main` takes: the name of each parameter, and its default."""
    parameters = inspect.signature(main).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if dataclasses.is_dataclass(parameter.default)}


def apart(options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` as they are recorded: the fields of a group in its place.

    Those of its LATER, which runs from before them lack, are absent where they are off.
    """
    recorded: dict[str, Any] = {}
    for name, value in options.items():
        if dataclasses.is_dataclass(value):
            later = getattr(value, "LATER", ())
            recorded |= {field: setting for field, setting in vars(value).items() if setting or field not in later}
        else:
            recorded[name] = value
    return recorded


def together(main: Callable[..., Any], recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Recorded options as `main` takes them: the inverse of `apart`."""
    options = dict(recorded)
    for name, default in groups(main).items():
        fields = {field.name for field in dataclasses.fields(default)} & options.keys()
        options[name] = dataclasses.replace(default, **{field: options.pop(field) for field in fields})
    return options


def flags_of(main: Callable[..., Any], options: Mapping[str, Any]) -> list[str]:
    """The words of a command line that give `main` these `options`, without those that are its defaults."""
    return words(options, {parameter.name: parameter.default for parameter in inspect.signature(main).parameters.values()})


def words(options: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str]:
    """The same of options that have these `defaults`."""
    defaults, words = apart(defaults), list[str]()
    for name, value in apart(options).items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words += [f"--{flag}" if value else f"--no-{flag}"] * (value != defaults.get(name, False))
        elif value != defaults.get(name):
            words += [f"--{flag}", *(map(str, value) if isinstance(value, tuple | list) else [str(value)])]
    return words
