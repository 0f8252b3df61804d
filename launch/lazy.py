"""Modules that are imported when they are needed: names of a package (PEP 562), torch's compiler, torch for a help screen."""

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

HEAVY = "accelerate", "datasets", "matplotlib", "safetensors", "timm", "torch", "torchvision"
COMPILER = "torch._dynamo.utils"
REAL = "ONELOOP_HELP_WITH_TORCH"  # set in the environment where a help screen turned out to need what it stands for


def lazily(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of `package`; `homes` maps a module of it to the names that it has, with blanks between them."""
    places = {name: module for module, names in homes.items() for name in names.split()}

    def get(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f".{places[name]}", package), name)

    return get


@contextlib.contextmanager
def without_compiler() -> Iterator[None]:
    """Context manager: torchvision, imported within, leaves torch's compiler alone until one of its operators asks about it.

    `torchvision.ops` imports it for one function, which its operators for boxes call: 1 s and 150 MiB for a net that has none.
    """
    if {COMPILER, "torchvision"} & sys.modules.keys():
        yield
        return

    def real(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(COMPILER) is stand_in:
            del sys.modules[COMPILER]
        return getattr(importlib.import_module(COMPILER), name)

    stand_in: Any = ModuleType(COMPILER)
    stand_in.__getattr__ = real  # whatever else of it is wanted
    stand_in.is_compile_supported = lambda device: real("is_compile_supported")(device)
    sys.modules[COMPILER] = stand_in
    try:
        yield
    finally:
        if sys.modules.get(COMPILER) is stand_in:
            del sys.modules[COMPILER]


# -------------------------------------------------------------------------------------------------- a help screen without torch


class _Kind(type):
    """Of StandIn: it has every name, and may be called, as decorators are."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return StandIn

    def __call__(cls, *args: Any, **options: Any) -> Any:
        return StandIn if cls is StandIn else super().__call__(*args, **options)


class StandIn(metaclass=_Kind):
    """Anything of a heavy module while only a help screen is wanted: named, called, subclassed; whatever else is tried raises."""


class _Module(ModuleType):
    __path__: list[str] = []  # noqa: RUF012 - a package, and nothing is found in it

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return StandIn


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds an empty module in place of each heavy one."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        heavy = name.partition(".")[0] in HEAVY
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if heavy else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def without_torch() -> bool:
    """Whether heavy modules are replaced by stand-ins, as this process ends with a help screen."""
    return any(isinstance(finder, _Finder) for finder in sys.meta_path)


def help_without_torch() -> None:
    """Replace the heavy modules if a recipe was started to show its help and has not imported torch before this package.

    A recipe's flags are its `main`'s signature, which needs no torch; its imports take seconds. Where it does need something of
    these modules, as in `epochs: int = torch.cuda.device_count()`, the process starts over with them.
    """
    asked = {"-h", "--help"} & {*sys.argv[1:]}
    recipe = sys.argv[0].endswith(".py") and getattr(sys.modules["__main__"], "__file__", None) == os.path.abspath(sys.argv[0])
    if asked and recipe and "torch" not in sys.modules and REAL not in os.environ:
        sys.meta_path.insert(0, _Finder())
        sys.excepthook = lambda *_: help_with_torch()


def help_with_torch() -> None:
    """Start this process over, with the heavy modules."""
    os.execve(sys.executable, sys.orig_argv, os.environ | {REAL: "1"})


def stands_in(value: Any) -> bool:
    """Whether `value`, of a signature, is made of a stand-in."""
    return isinstance(value, _Kind) or any(map(stands_in, getattr(value, "__args__", ())))
