"""Every recipe starts, trains and leaves its record; its help and the commands of its header work; its name shadows no module."""

import importlib.util
import re
import shlex
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, metrics, result, run_recipe
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision.models import resnet18
from torchvision.transforms.functional import pil_to_tensor

from launch import sources, train
from launch.command_line import parse
from launch.errors import Refused

RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.py"))

# Each recipe's flags, and the first losses of its first training on synthetic data. A refactoring keeps them or says why not. In
# float64 they are the same to 1e-9 with any CPU's instructions; in float32 some nets enlarge the last bits within two steps.
GOLDEN = {
    "cifar2": ({"batch": 16}, [
        0.69309951107, 0.6918490753, 0.71914792125, 0.68260396496, 0.65015073734, 0.69862028899, 0.68630474556, 0.75824169788,
        0.72341499074, 0.71842427677, 0.71888838262, 0.74105395714, 0.68350587738, 0.72720850784, 0.68050338363, 0.67856139176,
        0.6857357124, 0.68517722239, 0.70195177174, 0.69460937491,
    ]),
    "cifar10": ({"batch": 16}, [3.3935928675, 3.7756123376]),
    "cifar10_fast": ({"batch": 16}, [2.2981471546, 2.2955209708]),
    "convolutions": ({"batch": 16}, [0.69309951107, 0.6918490753, 0.71914792125, 0.68260396496]),
    "depth": ({"batch": 16}, [2.2953829963, 2.5154441371]),
    "fashion_nin": ({"batch": 4}, [2.3798302492, 2.286195591, 2.3503026938]),
    "fashion_small": ({"batch": 8}, [2.4008908553, 2.6504447468, 2.1824541047]),
    "mnist": ({"batch": 16}, [2.3132324139, 2.3002211713, 2.3029330717]),
    "model_selection": ({"batch": 8, "nets": ("MyNet2",)}, [2.3794133693, 2.6225146705, 2.479123401]),
    "ablations": ({"batch": 16}, [0.69309951107, 0.6918490753]),
    "transfer": ({"mode": "scratch", "batch": 8}, [1.0541311745, 0.87136148307]),
    "zoo": ({"batch": 8}, [2.499270509, 3.1973689661]),
}  # fmt: skip


SHORTER = {  # after the others' flags
    "transfer": ("--source-epochs", 1, "--limit", 64, "--few", 16, "--batch", 8), "fashion_nin": ("--limit", 20),
    "zoo": ("--limit", 20, "--batch", 16), "depth": ("--limit", 20, "--batch", 16),
    "model_selection": ("--limit", 40, "--batch", 8, "--k", 2), "custom": ("--net", "Net", "--mode", "scratch", "--size", 32),
    "cifar10_fast": ("--limit", 20, "--batch", 16),
}  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES)
def test_smoke(recipe, tmp_path):
    flags = ("--data", "synthetic", "--limit", 256, "--epochs", 1, "--threads", 1, "--out", "run", "--log-every", 1)
    done = run_recipe(recipe, *flags, *SHORTER.get(recipe, ()), cwd=tmp_path, tests=5)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "run").rglob("model.safetensors"))
    assert (tmp_path / "run/result.json").exists()


@pytest.mark.parametrize("recipe", RECIPES)
def test_help_is_complete(recipe, capsys):
    module = load(recipe)
    sys.modules[recipe] = module  # where its docstring is looked up
    with pytest.raises(SystemExit) as ended:
        parse(module.main, ["--help"])
    assert ended.value.code in (0, None)
    shown = capsys.readouterr().out
    for flag in ("--epochs", "--batch", "--lr", "--data", "--limit", "--seed", "--out", "--fresh", "--threads"):
        assert flag in shown
    for flag in ("--save-every", "--eval-every", "--log-every", "--wandb", "--compile"):
        assert flag in shown
    assert "Source" in shown


class Reached(Exception):
    """A recipe has reached its training."""


@pytest.mark.usefixtures("few_synthetic")
@pytest.mark.parametrize("recipe", RECIPES)
def test_commands_of_the_header_work(recipe, tmp_path, monkeypatch):
    """Each is parsed and, unless it needs a file or a download, reaches the training."""
    module = load(recipe)
    sys.modules[recipe] = module
    commands = re.findall(r"^(?:Run)? +(?:accelerate launch|python) (.*)", module.__doc__, re.MULTILINE)
    assert commands
    for number, command in enumerate(commands):
        before, _, flags = command.partition(f"recipes/{recipe}.py")
        if "--config_file" in before:
            assert (ROOT / shlex.split(before)[shlex.split(before).index("--config_file") + 1]).exists()
        run, chosen = parse(module.main, shlex.split(flags))
        if not hasattr(module, "train") or chosen.get("pretrained") or chosen.get("weights") or chosen.get("source"):
            continue
        if chosen.get("net") == "MyNetPretrained" or (recipe == "custom" and chosen["mode"] != "scratch"):
            continue
        run.data, run.limit, run.out, run.wandb = "synthetic", 64, tmp_path / str(number), "disabled"
        monkeypatch.setattr(module, "train", lambda *_, **__: (_ for _ in ()).throw(Reached))
        try:
            assert run.start(recipe, chosen) is None
            with pytest.raises(Reached):
                module.main(run, **chosen)
        finally:
            run.end()


@pytest.mark.parametrize("recipe", RECIPES)
def test_name_shadows_no_module(recipe):
    """recipes/ comes first on sys.path: `import datasets` would find recipes/datasets.py."""
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({recipe!r}) is not None)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT / "tests", check=False).returncode == 0


def test_wrong_usage_is_exit_2(tmp_path):
    for flags in (("--net", "Nett"), ("--eval-every", "0"), ("--epochs", "0")):
        done = run_recipe("cifar2", "--data", "synthetic", *flags, cwd=tmp_path)
        assert done.returncode == 2, (flags, done.stderr)
        assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def load(recipe: str):
    spec = importlib.util.spec_from_file_location(recipe, ROOT / f"recipes/{recipe}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def cifar2():
    return load("cifar2")


def test_kernels_of_the_chapter():
    """DLwPT ch. 8: the 1/9 kernel sums over channels; the edge kernel responds to vertical edges only."""
    convolutions = load("convolutions")
    image = torch.rand(1, 3, 12, 12)
    mean = F.avg_pool2d(image.mean(1, keepdim=True), 3, stride=1)
    torch.testing.assert_close(F.conv2d(image, convolutions.blur(1 / 9)), 3 * mean)
    torch.testing.assert_close(F.conv2d(image, convolutions.blur(1 / 27)), mean)
    step = torch.zeros(1, 3, 12, 12)
    step[..., 6:] = 0.5
    edges = F.conv2d(step, convolutions.vertical_edge())[0, 0]
    assert edges[:, 4:6].eq(9 * 0.5).all()  # beside the step
    assert edges[:, :4].eq(0).all()
    assert edges[:, 6:].eq(0).all()
    assert F.conv2d(step.transpose(2, 3), convolutions.vertical_edge()).abs().max() < 1e-6  # a horizontal edge


def test_verdicts_of_the_rules_of_thumb():
    """Transfer notes, section 2.4, on validation accuracies by epoch, and training minus validation accuracy."""
    verdict = load("model_selection").verdict
    assert verdict([[0.80, 0.86], [0.82, 0.88]], gap=0.05).startswith("overfits: use fewer or narrower layers")
    assert verdict([[0.50, 0.70]], gap=0.01) == "still learning: train for more epochs"
    assert verdict([[0.70, 0.70]], gap=0.01) == "underfits: go deeper or wider"
    assert verdict([[0.80, 0.86]], gap=0.01) == "good, and still improving: try deeper nets"
    assert verdict([[0.86, 0.86]], gap=0.01) == "good, and no longer improving"


@pytest.mark.usefixtures("few_synthetic")
def test_mnist_leaves_images_as_files(start, tmp_path):
    """MNIST notes, section 2.1: PNG keeps every pixel exactly, JPEG approximately."""
    load("mnist").main(start(limit=100), epochs=1)
    images = sources.mnist("synthetic", limit=100)
    folder = tmp_path / "run/images"
    for number, (pixels, label) in enumerate(zip(*(part[:10] for part in images.train), strict=True)):
        exact, nearly = (pil_to_tensor(Image.open(folder / f"{number}-{label}.{kind}")) for kind in ("png", "jpg"))
        assert exact.equal(pixels)
        assert 0 < (nearly.float() - pixels.float()).abs().mean() < 8
    montage = pil_to_tensor(Image.open(tmp_path / "run/montage.png"))
    assert montage.shape[1:] == (302, 302)  # rows of ten images of 28 pixels, with gaps of two
    assert montage[0, 2:30, 32:60].equal(images.train.pixels[1, 0])


@pytest.mark.usefixtures("few_synthetic")
@pytest.mark.parametrize(("mode", "learning"), [("gradual", 10_789_890), ("scratch", 11_177_538)])
def test_transfer_of_the_documents_net(mode, learning, start, tmp_path):
    """MyNetPretrained, two classes, from a file instead of torchvision's: the locked weights equal the file's, bit for bit."""
    torch.manual_seed(3)
    source = resnet18().state_dict()
    torch.save(source, tmp_path / "source.pt")
    options = {"net": "MyNetPretrained", "mode": mode, "source": str(tmp_path / "source.pt")}
    load("transfer").main(start(options=options), few=16, epochs=2, batch=8, size=32, **options)
    stage = {"gradual": "unlocked"}.get(mode, mode)
    assert result(tmp_path / f"run/{stage}")["trainable"] == learning
    trained = load_file(tmp_path / f"run/{stage}/model.safetensors")
    pairs = {"0.weight": "conv1.weight", "1.running_mean": "bn1.running_mean", "5.0.bn1.running_var": "layer2.0.bn1.running_var"}
    assert all(trained[f"pretrained.{ours}"].equal(source[theirs]) == (mode != "scratch") for ours, theirs in pairs.items())


@pytest.mark.usefixtures("few_synthetic")
def test_transfer_refuses_the_weights_of_another_net(start, cifar2, tmp_path):
    """One layer that happens to fit is not enough; the refused run leaves no files."""
    weights = {name: tensor.clone() for name, tensor in cifar2.Net().state_dict().items()}
    save_file(weights | {"linear.bias": torch.zeros(2)}, tmp_path / "net.safetensors")
    with pytest.raises(Refused, match="--source is not a ResNet-20: it lacks") as refused:
        load("transfer").main(start(), mode="frozen", source=str(tmp_path / "net.safetensors"))
    assert refused.value.code == 4
    assert [path.name for path in tmp_path.iterdir()] == ["net.safetensors"]


@pytest.mark.usefixtures("few_synthetic")
@pytest.mark.parametrize("net", ["Net", "NetWidth", "NetDropout", "NetBatchNorm", "NetDepth", "NetRes"])
def test_every_design_learns(net, cifar2, start, tmp_path):
    run = start(limit=256)
    cifar2.main(run, net=net, epochs=3, batch=16, lr=0.05)
    losses = [line["loss"] for line in metrics(tmp_path / "run") if line["event"] == "train"]
    assert losses[-1] < losses[0]


@pytest.mark.usefixtures("few_synthetic")
def test_res_deep_starts(cifar2, start, tmp_path):
    run = start(limit=8)
    cifar2.main(run, net="NetResDeep", epochs=1, batch=4, lr=3e-3)
    assert result(tmp_path / "run")["parameters"] == 994_530


@pytest.mark.usefixtures("few_synthetic")
def test_l2_is_weight_decay_of_twice_as_much(cifar2, start, tmp_path):
    """DLwPT ch. 8, section 5.2: the gradient of λ Σp² is 2λp."""
    cifar2.main(start(out="l2", limit=128, seed=3), l2=0.01, epochs=2)
    run = start(out="decay", limit=128, seed=3)
    images = sources.cifar10("synthetic", keep=("airplane", "bird"), limit=128)
    model = cifar2.Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, weight_decay=0.02, fused=True)
    train(run, model, images, optimizer, F.cross_entropy, epochs=2, batch=64)
    penalised, decayed = (load_file(tmp_path / name / "model.safetensors") for name in ("l2", "decay"))
    torch.testing.assert_close(penalised, decayed, rtol=1e-5, atol=1e-7)
    cifar2.main(start(out="none", limit=128, seed=3), epochs=2)
    first = {name: metrics(tmp_path / name)[0]["loss"] for name in ("l2", "decay", "none")}
    assert first["l2"] > first["none"]  # the printed loss includes the penalty, as in DLwPT ch. 8


@pytest.fixture
def in_float64():
    """Nets, and the images in memory that they get, are float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("few_synthetic", "in_float64")
@pytest.mark.parametrize("recipe", GOLDEN)
def test_golden_losses(recipe, start, tmp_path):
    options, golden = GOLDEN[recipe]
    run = start(limit=21 * 16, log_every=1, stop_when=lambda step, _: step == len(golden) - 1)
    with pytest.raises(Refused, match=f"at step {len(golden)};"):
        load(recipe).main(run, **options)
    (place,) = (tmp_path / "run").rglob("metrics.jsonl")
    losses = [line["loss"] for line in metrics(place.parent) if line["event"] == "train"]
    assert losses == pytest.approx(golden, rel=1e-9)
