"""The net of a run folder: made by a recipe that the user trusts, and refused in one line where anything does not fit."""

import json
import shutil
from pathlib import Path

import filelock
import pytest
import safetensors.torch
from conftest import ROOT, result
from trained import TWICE, claimed, train_here

from launch.errors import Refused
from launch.report import runs
from launch.trained import rebuild

pytestmark = pytest.mark.usefixtures("own_path")


def test_a_stage_is_rebuilt_and_nothing_is_written(trained_runs, oneloop):
    def state():
        return {path: path.read_bytes() for path in (trained_runs / "twice").rglob("*") if path.is_file()}

    before = state()
    for stage, width in (("first", 3), ("second", 5)):
        code, out, _ = oneloop("evaluate", trained_runs / "twice" / stage, "--recipe", trained_runs / "twice.py", "--json")
        said = json.loads(out)  # and nothing that the recipe prints
        assert (code, said["loss"]) == (0, result(trained_runs / "twice" / stage)["test"]["loss"])
        assert rebuild(runs.read(trained_runs / "twice"), stage, recipe=trained_runs / "twice.py").net[0].out_channels == width
    code, _, error = oneloop("predict", trained_runs / "twice", trained_runs / "images")
    assert code == 4
    assert f"name one: {trained_runs / 'twice/first'}, {trained_runs / 'twice/second'}\n" in error
    assert state() == before


def test_describing_a_recipe_of_stages_writes_nothing(oneloop, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = oneloop("describe", ROOT / "recipes/transfer.py")
    assert code == 0
    assert "layer3.2.conv2" in out
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """evil(path) writes a copy of cifar2.py that leaves a mark when executed, see `evil.ran`; the current directory is empty."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    class Evil:
        mark = tmp_path / "ran"

        @property
        def ran(self) -> bool:
            there = self.mark.exists()
            self.mark.unlink(missing_ok=True)
            return there

        def __call__(self, path: Path) -> Path:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"open({str(self.mark)!r}, 'w').close()\n" + (ROOT / "recipes/cifar2.py").read_text())
            return path

    return Evil()


def recorded(folder: Path, **changes) -> None:
    """Change what config.json records: the options of its "config", or its own entries."""
    config = json.loads((folder / "config.json").read_text())
    for name, value in changes.items():
        (config["config"] if name in config["config"] else config)[name] = value
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("command", ["predict", "evaluate", "export", "explain"])
def test_a_run_folder_brings_no_recipe(command, birds, trained_runs, oneloop, tmp_path, evil, monkeypatch):
    """A recipe is code and a run folder may come from anyone: whatever it records or contains, none of it is executed."""
    if command == "explain":
        pytest.importorskip("captum")
    image = trained_runs / "images/test/bird/01.png"
    args = {"evaluate": [], "export": ["--format", "safetensors", "--out", tmp_path / "out"]}.get(command, [image])
    claimed(birds, probe=None)  # else its name is enough to make the net
    beside, outside, inner = evil(birds / "evil.py"), evil(tmp_path / "evil.py"), evil(birds / "recipes/evil.py")
    evil(tmp_path / "recipes/evil.py")  # beside the run folder
    (birds / "link.py").symlink_to(outside)
    (birds / "elsewhere").symlink_to(tmp_path)
    for name in (
        str(outside.with_suffix("")), str(beside.with_suffix("")), "../evil", "../birds/evil", "../../here/../evil", "evil", "",
        ".", "..", "evil\0", "evil.py", "a/evil", "*", "link", "elsewhere/evil",
    ):  # fmt: skip
        linked = birds / "link.py", birds / "elsewhere/evil.py"
        for file in (*map(str, (beside, inner, outside, *linked)), "evil.py", f"{name}.py", "\0", "", "/" * 9999, 3, None):
            recorded(birds, recipe=name, recipe_file=file)
            code, out, error = oneloop(command, birds, *args)
            assert (code, out, error.count("\n"), evil.ran) == (2, "", 1, False), (name, file)
    recorded(birds, recipe="evil", recipe_file=str(inner))
    for here in (birds, birds / "recipes"):  # who works inside of it
        monkeypatch.chdir(here)
        assert (oneloop(command, birds, *args)[0], evil.ran) == (2, False)
        assert (oneloop(command, ".", *args)[0] in (2, 4), evil.ran) == (True, False)
    (tmp_path / "here/recipes").symlink_to(birds / "recipes")  # and where `recipes` leads into it
    monkeypatch.chdir(tmp_path / "here")
    assert (oneloop(command, birds, *args)[0], evil.ran) == (2, False)
    (tmp_path / "here/recipes").unlink()
    assert (oneloop(command, birds, *args, "--recipe", outside)[0], evil.ran) == (0, True)  # control: it could have run


def test_a_recipe_elsewhere_needs_the_users_flag(birds, trained_runs, oneloop, tmp_path, evil):
    """For a recorded recipe that is not one of those in `recipes`, such as a changed copy, the message gives the flag."""
    image, mine = trained_runs / "images/test/bird/01.png", evil(tmp_path / "my own/cifar2.py")
    claimed(birds, probe=None)
    recorded(birds, recipe_file=str(mine))
    code, _, error = oneloop("predict", birds, image)
    assert (code, error.count("\n"), evil.ran) == (2, 1, False)
    assert f"{birds} was trained by {mine}, which is neither in {ROOT / 'recipes'} nor in recipes/" in error
    assert error.endswith(f"if you trust that file, add --recipe '{mine}'\n")
    assert (oneloop("predict", birds, image, "--recipe", mine)[0], evil.ran) == (0, True)
    recorded(birds, recipe="mine", recipe_file="/gone/mine.py")
    code, _, error = oneloop("predict", birds, image)
    assert (code, error.count("\n")) == (2, 1)
    assert f"mine.py, is neither in {ROOT / 'recipes'} nor in recipes/; --recipe FILE says where it is" in error


def test_recipes_that_need_no_flag(birds, trained_runs, oneloop, tmp_path, evil):
    """The package's, from anywhere, and those in `recipes` where the user works; of the same name, the package's first."""
    image = trained_runs / "images/test/bird/01.png"
    claimed(birds, probe=None)
    assert oneloop("predict", birds, image)[0] == 0
    recorded(birds, recipe_file="/gone/cifar2.py")  # the run was made on another machine
    assert oneloop("predict", birds, image)[0] == 0
    (tmp_path / "copy").mkdir()
    recorded(birds, recipe_file=shutil.copy(ROOT / "recipes/cifar2.py", tmp_path / "copy"))  # in another checkout
    assert oneloop("predict", birds, image)[0] == 0
    recorded(birds, recipe_file=str(evil(birds / "cifar2.py")))  # what the folder brings does not stand in the way
    assert (oneloop("predict", birds, image)[0], evil.ran) == (0, False)
    mine = evil(tmp_path / "here/recipes/mine.py")
    recorded(birds, recipe="mine", recipe_file=str(mine))
    assert (oneloop("predict", birds, image)[0], evil.ran) == (0, True)
    recorded(birds, recipe_file="/gone/mine.py")
    assert (oneloop("predict", birds, image)[0], evil.ran) == (0, True)
    evil(tmp_path / "here/recipes/cifar2.py")
    recorded(birds, recipe="cifar2")
    assert (oneloop("predict", birds, image)[0], evil.ran) == (0, False)
    recorded(birds, recipe_file=str(tmp_path / "here/recipes/cifar2.py"))  # which is the one that trained it
    assert (oneloop("predict", birds, image)[0], evil.ran) == (0, True)


def test_a_run_on_the_hubs_data_is_used_without_it(birds, trained_runs, oneloop, monkeypatch):
    config = json.loads((birds / "config.json").read_text())
    config["config"]["data"] = "hub"
    (birds / "config.json").write_text(json.dumps(config))

    def asked(*_):
        raise Refused("the hub was asked")

    monkeypatch.setattr("launch.sources.in_memory.read_hub", asked)
    assert oneloop("predict", birds, trained_runs / "images")[0] == 0
    assert oneloop("evaluate", birds)[::2] == (1, "the hub was asked\n")  # control


def test_a_recipe_that_has_changed_is_refused(birds, trained_runs, oneloop, tmp_path):
    text = (ROOT / "recipes/cifar2.py").read_text()
    for old, new, says in (
        ("    n_blocks: int = 100,\n", "", "no longer takes the options of"),
        ("else NETS[net]()", "else Net()", "the saved weights are not those of Net"),
    ):
        assert old in text
        (tmp_path / "cifar2.py").write_text(text.replace(old, new))
        code, _, error = oneloop("predict", birds, trained_runs / "images", "--recipe", tmp_path / "cifar2.py")
        assert (code, error.count("\n")) == (4, 2)
        assert error.startswith("cifar2.py changed since")
        assert says in error
    folder = shutil.copytree(trained_runs / "twice", tmp_path / "run")  # its second stage is no more: the recipe comes to its end
    (tmp_path / "twice.py").write_text(TWICE.replace('zip(("first", "second"), widths, strict=True)', '[("first", 3)]'))
    (folder / "result.json").write_text('{"summary": "as it was"}')
    code, _, error = oneloop("predict", folder / "second", trained_runs / "images", "--recipe", tmp_path / "twice.py")
    assert (code, error.count("\n")) == (2, 2)
    assert "ended without calling `train` for the stage second" in error
    assert result(folder) == {"summary": "as it was"}


@pytest.mark.parametrize(("name", "values"), [
    ("shape", [[3, 100_000, 100_000], [3, 32], [3, 0, 32], [2, 32, 32], [3, 32.0, 32], "332", None]),
    ("size", [-3, 100_000, 1.5, True]),
    ("mean", [[0.5] * 4, [0.5, 0.5, "0.5"], [0.5, 0.5, float("nan")], 0.5]),
    ("std", [[0.5] * 2, [0.5, 0.5, 0.0], [0.5, 0.5, float("inf")]]),
    ("classes", [[], ["airplane", "bird", "cat"], ["airplane", 3], {"airplane": 0, "bird": 1}, ["bird", "airplane"],
                 ["x"] * 1_000_000, ["x" * 100] * 90_000]),
    ("net", [3]), ("recipe", [["cifar2"]]),
])  # fmt: skip
def test_impossible_metadata_are_refused(birds, trained_runs, oneloop, name, values):
    """Unchecked, these values would exhaust memory or end in a traceback."""
    for value in values:
        claimed(birds, **{name: value}, probe=None)
        code, out, error = oneloop("predict", birds, trained_runs / "images/test/bird/01.png")
        assert (code, out, error.count("\n")) == (4, "", 1), value
        assert len(error) < 1500
    claimed(
        birds, **json.loads(safetensors.safe_open(trained_runs / "birds/model.safetensors", framework="pt").metadata()["oneloop"])
    )
    assert oneloop("predict", birds, trained_runs / "images/test/bird/01.png")[0] == 0  # control


def test_an_image_that_the_net_cannot_take_names_the_layer(birds, trained_runs, oneloop):
    for changes in ({"shape": [3, 28, 28]}, {"size": 28}):
        claimed(birds, **changes)
        code, _, error = oneloop("export", birds, "--format", "safetensors")
        assert (code, error.count("\n")) == (4, 1)
        assert "NetBatchNorm cannot take (1, 3, 28, 28): fc1 expects 1024 features, got 784" in error
        claimed(birds, shape=[3, 32, 32])
    claimed(birds, shape=[3, 40, 48], size=32)  # control: what is resized first may have any size
    assert oneloop("predict", birds, trained_runs / "images/test/bird/01.png")[0] == 0


@pytest.mark.parametrize("metadata", [b"", b"{}", b"[", b"[" * 5_000, b'{"__metadata__": {"oneloop": 3}}'])
def test_a_damaged_header_is_one_line(birds, trained_runs, oneloop, metadata):
    for length in (len(metadata), 1 << 62):
        (birds / "model.safetensors").write_bytes(length.to_bytes(8, "little") + metadata)
        code, _, error = oneloop("predict", birds, trained_runs / "images")
        assert (code, error.count("\n")) == (4, 1)
        assert "model.safetensors does not describe its net" in error


@pytest.mark.parametrize("changes", [
    {"limit": "many"}, {"seed": None}, {"config": []}, {"config": {}}, {"data": 3}, {"data": {}},
    {"data": {"source": 1, "fingerprint": 2}}, {"net": 3}, {"net": ["Net"]}, {"precision": "fp99"}, {"precision": 16},
    {"recipe": 3},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_a_damaged_config_is_one_line(birds, trained_runs, oneloop, command, changes):
    recorded(birds, **changes)
    claimed(birds, probe=None)
    if changes == {"data": {}}:
        config = json.loads((birds / "config.json").read_text())
        (birds / "config.json").write_text(json.dumps(config | changes | {"config": config["config"] | {"data": "synthetic"}}))
    code, out, error = oneloop(command, birds, *([trained_runs / "images/test"] if command == "predict" else []))
    assert (code, out, error.count("\n")) == (4, "", 1)


def test_runs_without_weights_say_why_in_one_line(birds, trained_runs, oneloop, tmp_path):
    (birds / "model.safetensors").rename(tmp_path / "kept")
    (birds / "result.json").unlink()

    def refusal(*flags) -> str:
        code, _, error = oneloop("predict", birds, trained_runs / "images", *flags)
        assert (code, error.count("\n")) == (4, 1)
        return error

    config = json.loads((birds / "config.json").read_text())
    assert f"was interrupted: run python {config['command']} to resume it, or use --weights best, the best so far" in refusal()
    with filelock.FileLock(birds / "lock"):
        assert "is still training: wait for its end, or use --weights best" in refusal()
    (birds / "stopped.json").write_text(json.dumps({"code": 3, "why": "the loss is not finite at step 7"}))
    assert "has not finished: the loss is not finite at step 7" in refusal()
    assert oneloop("evaluate", birds, "--weights", "best")[0] == 0
    (birds / "best.safetensors").write_bytes(b"torn")
    assert "best.safetensors" in refusal("--weights", "best")
    (birds / "config.json").write_text(json.dumps(config | {"format": 99}))
    assert "was written by another version of oneloop (format 99)" in refusal()
    (birds / "config.json").unlink()
    assert "is not a run folder" in refusal()
    code, _, error = oneloop("predict", tmp_path / "nowhere", trained_runs / "images")
    assert (code, error) == (2, f"no run at {tmp_path / 'nowhere'}; `oneloop runs` lists the runs\n")


def test_by_hand_cannot_be_rebuilt(trained_runs, oneloop, tmp_path):
    train_here(ROOT / "recipes/by_hand.py", "--limit", 64, "--epochs", 1, "--out", tmp_path / "run")
    code, _, error = oneloop("predict", tmp_path / "run", trained_runs / "images")
    assert (code, error.count("\n")) == (4, 1)
    assert "not written by `train`" in error
