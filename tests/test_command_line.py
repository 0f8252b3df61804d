"""Command lines as users type them: flags that are on or off, huge numbers, and random words and flags."""

import contextlib
import dataclasses
import inspect
import io
import random
import shutil
import signal
import sys
import typing
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from photos import write_photos

from launch import Run, commands, sources
from launch.command_line import cli, parse
from launch.errors import Refused
from launch.recipe import load
from launch.sources import synthetic
from launch.verify.trial import Trial

RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.py"))
HUGE = "9" * 23


@pytest.fixture(scope="module")
def recipes():
    """The recipes as modules, by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path])
        yield {name: load(ROOT / f"recipes/{name}.py") for name in RECIPES}
    for name in RECIPES:
        sys.modules.pop(name, None)


SWITCHES = {
    "": False, "--pretrained": True, "--pretrained=True": True, "--pretrained true": True, "--pretrained=1": True,
    "--pretrained=False": False, "--pretrained false": False, "--pretrained 0": False, "--no-pretrained": False,
    "--pretrained --no-pretrained": False, "--no-pretrained --pretrained=yes": True, "--pretrained=OFF": False,
}  # fmt: skip


@pytest.mark.parametrize("flags", SWITCHES)
def test_a_flag_that_is_on_or_off_takes_what_users_type(flags, recipes):
    words = ["--data", "x", *flags.split(), "--wandb_artifacts=no", "--fresh", "--size", "32"]
    run, options = parse(recipes["custom"].main, words)
    assert (options["pretrained"], options["size"], run.fresh, run.wandb_artifacts) == (SWITCHES[flags], 32, True, False)


ON_BY_DEFAULT = {
    "": True, "--constant": True, "--constant=true": True, "--no-constant": False, "--constant=False": False,
    "--constant off": False, "--no-constant --constant": True, "--constant --no-constant": False,
}  # fmt: skip


@pytest.mark.parametrize("flags", ON_BY_DEFAULT)
def test_a_flag_that_is_on_by_default_can_be_switched_off(flags, recipes):
    _, options = parse(recipes["custom"].main, ["--data", "x", *flags.split(), "--no-average"])
    assert (options["constant"], options["average"]) == (ON_BY_DEFAULT[flags], False)


@pytest.mark.parametrize("flags", ["--deep", "--deep=yes", "--deep False", "--no-deep"])
def test_a_flag_that_must_be_given_is_on_or_off(flags):
    def main(run: Run, deep: bool):
        """Train."""

    _, options = parse(main, flags.split())
    assert options == {"deep": flags in ("--deep", "--deep=yes")}


@pytest.mark.parametrize("rank", [None, "abc"])  # what was left in the shell
@pytest.mark.parametrize("flag", ["--pretrained=maybe", "--no-pretrained=1", "--fresh=", "--compile=2"])
def test_another_value_of_it_is_one_line(flag, rank, recipes, monkeypatch, capsys):
    if rank:
        monkeypatch.setenv("RANK", rank)
    with pytest.raises(SystemExit) as ended:
        parse(recipes["custom"].main, ["--data", "x", flag])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"{flag}: this flag is on or off: --")
    assert said.count("\n") == 1


def test_images_need_data(recipes, capsys):
    """And neither its help nor its usage names a data set that it would refuse."""
    for flags, code in ((["--help"], 0), ([], 2)):
        with pytest.raises(SystemExit) as ended:
            parse(recipes["custom"].main, flags)
        assert (ended.value.code or 0) == code
        said = " ".join("".join(capsys.readouterr()).split())
        assert "--data" in said
        assert "default: hub" not in said


def test_validation_0_is_none_and_a_run_of_its_own(recipes, tmp_path):
    """Where a recipe splits by itself. Elsewhere it is what the recipe does anyway, and the same run."""
    write_photos(tmp_path / "set", {"ant": 20, "bee": 20})
    splits, folders, reached = {}, {}, []
    for flags in ((), ("--validation", "0"), ("--validation", "0.2")):
        given = ["--data", str(tmp_path / "set"), "--net", "Net", "--size", "32", "--mode", "scratch", *flags]
        run, options = parse(recipes["custom"].main, given)
        run.configure("custom", options, "no")
        folders[flags] = run.find_folder().folder
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(recipes["custom"], "train", lambda run, model, images, *_, **__: reached.append(images))
            run.opened, run.micro_batches = True, 1
            run.accelerator = SimpleNamespace(device=torch.device("cpu"))
            recipes["custom"].main(run, **options)
        splits[flags] = reached[-1]
    validation = {flags: 0 if images.validation is None else len(images.validation) for flags, images in splits.items()}
    assert validation[()] > 0
    assert validation["--validation", "0"] == 0
    assert splits["--validation", "0"].model_selection_split == "test"
    assert validation["--validation", "0.2"] > validation[()]
    assert len({*folders.values()}) == 3
    same = []
    for flags in ((), ("--validation", "0")):
        run, options = parse(recipes["cifar2"].main, ["--data", "synthetic", *flags])
        run.configure("cifar2", options, "no")
        same.append(run.find_folder().folder)
    assert same[0] == same[1]


def numeric(main) -> list[str]:
    """The flags of `main` and of every recipe that take numbers."""
    kinds = {each.name: each.type for each in dataclasses.fields(Run) if each.init}
    kinds |= {name: each.annotation for name, each in inspect.signature(main).parameters.items()}
    return [f"--{name.replace('_', '-')}" for name, kind in kinds.items() if {int, float} & {kind, *typing.get_args(kind)}]


@pytest.mark.parametrize("recipe", RECIPES)
def test_numbers_out_of_all_reason_are_refused_at_once(recipe, recipes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main, basis = recipes[recipe].main, ["--data", "synthetic"]

    def configure(*flags):
        run, options = parse(main, [*basis, *flags])
        run.configure(recipe, options, "no")

    for flag in numeric(main):
        for value in (HUGE, "-1", "-" + HUGE, "nan", "inf", "-inf", "1e400"):
            with pytest.raises((Refused, SystemExit)) as refused:
                configure(flag, value)
            assert refused.value.code == 2, (flag, value)
    assert list(tmp_path.iterdir()) == []


def test_a_share_of_one_or_more_and_an_empty_batch_are_refused_before_the_run_folder(recipes, tmp_path, monkeypatch):
    """An average that never follows, smoothing that torch refuses at the first step: not after a folder was made."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    refused = {("--ema", "1"): "less than 1", ("--ema", "1.5"): "less than 1", ("--smoothing", "2"): "less than 1"}
    for (flag, value), why in (refused | {("--batch", "0"): "at least 1"}).items():
        given = ["--data", "synthetic", "--net", "Net", "--mode", "scratch", "--size", "32", "--epochs", "1"]
        given += ["--limit", "16", flag, value]
        monkeypatch.setattr(sys, "argv", [recipes["custom"].__file__, *given])
        code, said = ended(lambda: cli(recipes["custom"].main))
        assert (code, said.count("\n")) == (2, 1), said
        assert f"{flag} must be {why}, it is {value}" in said
        assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------------------------------------- a random hand

ODD = (
    "", " ", "0", "1", "-1", "2", "3.5", "1e-9", "5000", HUGE, "nan", "inf", "None", "a", "ü/\n", "../..", "/", "/dev/null",
    "--", "-h",
)  # fmt: skip
CODES = {0, 1, 2, 3, 4, 5, 75, 130, 138, 143}


class Hand:
    """Makes command lines by chance, the same ones for a seed."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)

    def value(self, kind: object) -> list[str]:
        """A value for a flag of this type, as likely odd as fit."""
        pick = self.random.choice
        choices = typing.get_args(kind)
        if typing.get_origin(kind) is typing.Literal and self.random.random() < 0.7:
            return [pick(choices)]
        if typing.get_origin(kind) is tuple:
            return [word for _ in range(self.random.randrange(3)) for word in self.value(choices[0])]
        if kind is bool:
            return [pick(("true", "false", "maybe"))] if self.random.random() < 0.3 else []
        numbers = {int, float} & {kind, *choices}
        if numbers and self.random.random() < 0.6:
            return [pick(("0", "1", "2", "3", "7", "0.5", "0.9", "1.5") if float in numbers else ("0", "1", "2", "3", "7", "33"))]
        return [pick(ODD)]

    def flags(self, main) -> list[str]:
        """Some of the flags of `main` and of every recipe, without those that take long."""
        kinds = {each.name: each.type for each in dataclasses.fields(Run) if each.init}
        kinds |= {name: each.annotation for name, each in inspect.signature(main).parameters.items() if name != "run"}
        names = self.random.sample(sorted(kinds.keys() - {"compile", "profile"}), self.random.randrange(1, 5))
        return [word for name in names for word in (f"--{name.replace('_', '-')}", *self.value(kinds[name]))]


def ended(action, seconds: int = 60) -> tuple[int, str]:
    """The exit code of `action()` and what it said on standard error; fails where it hangs."""
    said = io.StringIO()

    def hung(*_):
        pytest.fail(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, hung)
    signal.alarm(seconds)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            code = action() or 0
    except SystemExit as error:
        code = error.code or 0
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return code, said.getvalue()


def whole(folder) -> bool:
    """Return whether there is nothing at this place, or only what an early end or a run leaves, and no half-written file."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    assert not [path for path in folder.rglob("*") if "tmp" in path.name]
    return "config.json" in names or names <= {"lock", "lock.pid", "stopped.json", "code"}


SMALL = {"--data": "synthetic", "--limit": "16", "--batch": "8", "--threads": "1", "--out": "out", "--wandb": "disabled"}
FEW = {
    "custom": {"--net": "Net", "--size": "32", "--mode": "scratch"},
    "transfer": {"--size": "32"}, "fashion_nin": {"--limit": "2"},
}  # fmt: skip


@pytest.fixture
def by_chance(recipes, few_synthetic, tmp_path, monkeypatch):
    """by_chance(recipe, seed) -> the command line, its exit code and what it said; a training stops before its second step."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(Run, "stop_when", staticmethod(lambda step, _: step >= 1))
    drawn = {}
    read = synthetic.read
    monkeypatch.setattr(synthetic, "read", lambda *given: drawn.get(str(given)) or drawn.setdefault(str(given), read(*given)))

    def by_chance(recipe, seed):
        main = recipes[recipe].main
        flags = Hand(seed).flags(main)
        for flag, value in (SMALL | FEW.get(recipe, {})).items():
            flags += [] if flag in flags else [flag, value]
        monkeypatch.setattr(sys, "argv", [recipes[recipe].__file__, *flags])
        return flags, *ended(lambda: cli(main))

    return by_chance


@pytest.mark.parametrize("recipe", RECIPES)
def test_no_flags_by_chance_end_in_a_traceback(recipe, by_chance, tmp_path):
    """Nor hang, nor leave half of something; and what is wrong is said in a line, or in tyro's box."""
    for seed in range(4):
        flags, code, said = by_chance(recipe, seed)
        assert code in CODES, (flags, code, said)
        assert bool(said) or not code, flags
        assert "Traceback" not in said, flags
        assert whole(tmp_path / "out"), flags
        shutil.rmtree(tmp_path / "out", ignore_errors=True)


NUMBERS = [
    ["sweep", "RECIPE", "--lr", "0.1", "--at-once"], ["sweep", "RECIPE", "--lr", "0.1", "--on", "slurm", "--cpus"],
    ["sweep", "RECIPE", "--on", "slurm", "--gpus"], ["sweep", "RECIPE", "--epochs"], ["sweep", "RECIPE", "--micro-batches", "1"],
    ["data", "set", "--validation"], ["data", "set", "--test"], ["describe", "RECIPE", "--shape", "3", "32"],
    ["predict", "run", "set", "--top"], ["describe", "RECIPE", "--n-blocks"],
]  # fmt: skip


@pytest.mark.parametrize("words", NUMBERS, ids=lambda words: words[0] + words[-1])
def test_numbers_of_commands_out_of_all_reason_are_refused_at_once(words, trained_runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    shutil.copytree(trained_runs / "birds", tmp_path / "run")
    write_photos(tmp_path / "set", {"ant": 3, "bee": 3})
    for value in (HUGE, "-1", "-" + HUGE, "nan", "inf")[words[0] == "predict" :]:  # --top may be as large as one likes
        given = [str(ROOT / "recipes/cifar2.py") if word == "RECIPE" else word for word in words]
        code, said = ended(lambda given=given, value=value: commands.main([*given, value]), 20)
        assert code == 2, (given, value, said)
    assert {path.name for path in tmp_path.iterdir()} == {"run", "set"}


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError()])
def test_no_threads_or_memory_left_is_one_line(error, recipes, tmp_path, monkeypatch, capsys):
    def fail(*_, **__):
        raise error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(sys, "argv", [recipes["cifar2"].__file__, "--data", "synthetic", "--wandb", "disabled"])
    monkeypatch.setattr(sources, "cifar10", fail)
    monkeypatch.setattr("launch.commands.runs.main", fail)
    for action in (lambda: cli(recipes["cifar2"].main), lambda: commands.main(["runs"])):
        code, said = ended(action)
        assert code == 1
        assert said.count("\n") == 1
        assert "ulimit -" in said


FLAGS = {
    "data": ["--html", "--json", "--split", "--write-split", "--validation", "--test", "--label-column", "--clear"],
    "describe": ["--shape", "--net", "--help"], "verify": ["--out", "--epochs", "--limit"], "runs": ["--json"],
    "compare": ["--out", "--csv", "--json", "--markdown", "--against"],
    "sweep": ["--at-once", "--config_file", "--compare", "--on", "--cpus", "--gpus", "--lr", "--seed", "--fresh", "--limit"],
    "predict": ["--top", "--csv", "--json", "--weights", "--recipe"],
    "evaluate": ["--data", "--split", "--json", "--weights", "--recipe"],
    "export": ["--format", "--out", "--weights", "--recipe"], "explain": ["--class", "--out", "--weights", "--recipe"],
    "upload": ["--new"],
}  # fmt: skip


@pytest.mark.parametrize("name", FLAGS)
def test_no_words_by_chance_end_in_a_traceback(name, trained_runs, tmp_path, monkeypatch):
    """After `oneloop COMMAND`. No process is started, and nothing is sent."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained_runs / "birds", tmp_path / "run")
    write_photos(tmp_path / "set", {"ant": 3, "bee": 3})
    (tmp_path / "table.csv").write_text("path,label\nset/ant/0000.jpg,ant\nset/bee/0003.jpg,bee\nset/bee/0004.jpg,nan\n")
    monkeypatch.setattr(Trial, "begin", lambda *_, **__: (_ for _ in ()).throw(Refused("a run was started")))
    monkeypatch.setattr("launch.commands.sweep.run", lambda *_: {})
    recipe = str(ROOT / "recipes/cifar2.py")
    places = ["run", "set", "table.csv", "set/ant/0000.jpg", recipe, "nowhere", "run/config.json", "run/best.safetensors", "onnx"]
    monkeypatch.setattr(sys, "path", [*sys.path])
    first = {"describe": recipe, "verify": recipe, "sweep": recipe, "data": "set"}.get(name, "run")
    for seed in range(5):
        pick = random.Random(f"{name} {seed}")
        words = [first] if pick.random() < 0.8 else []
        for _ in range(pick.randrange(4)):
            words += [pick.choice([*FLAGS[name], *places])]
            words += [pick.choice([*ODD[:-6], "--", *places])] if pick.random() < 0.6 else []
        code, said = ended(lambda words=words: commands.main([name, *words]))
        assert code in CODES, (words, said)
        assert bool(said) or code in (0, 130), words
        assert "Traceback" not in said, words
        assert not [path for path in tmp_path.rglob("*") if "tmp" in path.name], words
