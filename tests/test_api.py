"""`oneloop.load(…)`: a trained net in three lines, which sees images as its training did, or is refused."""

import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from trained import claimed

import nets.cifar2
import oneloop as api
from launch.data import file_feed
from launch.errors import Refused
from oneloop import by_name

pytestmark = pytest.mark.usefixtures("own_path")


@pytest.fixture(scope="module")
def files(trained_runs):
    return sorted((trained_runs / "images/test").rglob("*.png"))


@pytest.fixture(scope="module")
def model(trained_runs):
    return api.load(trained_runs / "birds")


def test_paths_arrays_and_pil_images_get_the_answers_of_oneloop_predict(model, files, trained_runs, oneloop):
    answers = json.loads(oneloop("predict", trained_runs / "birds", trained_runs / "images/test", "--json")[1])
    opened = [Image.open(file) for file in files]
    arrays = [np.array(image) for image in opened]
    for images in (files, [*map(str, files)], opened, arrays, np.stack(arrays), iter(files)):
        predicted = model.predict(images)
        for one, answer in zip(predicted, answers, strict=True):
            assert [*one.probabilities] == [each["class"] for each in answer["predictions"]]
            values = [each["probability"] for each in answer["predictions"]]
            assert [*one.probabilities.values()] == pytest.approx(values, abs=1e-6)
        assert [(one.label, one.probability) for one in predicted] == [next(iter(one.probabilities.items())) for one in predicted]
    assert model.predict(files[0]) == model.predict(str(files[0])) == model.predict(arrays[0]) == model.predict(opened[0])
    assert [len(one.probabilities) for one in model.predict(files[:2], top=1)] == [1, 1]
    assert model.classes == ("airplane", "bird")


def test_features_are_what_the_last_layer_gets(model, files):
    features = model.embed(files)
    assert features.shape == (12, 32)
    probabilities = model.net.fc2(features).softmax(1)
    for row, one in zip(probabilities.tolist(), model.predict(files), strict=True):
        assert row == pytest.approx([one.probabilities[name] for name in model.classes], abs=1e-6)
    assert model.embed([]).shape == (0, 0)
    assert isinstance(model.net.fc2, nn.Linear)


def test_features_have_one_meaning_for_every_net(model, files, trained_runs):
    """As launch/features has it: what the net makes of an image without its last layer, also if that is a convolution."""
    flipped = api.load(trained_runs / "birds", tta="flip").embed(files)
    arrays = [np.array(Image.open(file)) for file in files]
    mirrored = model.embed([np.ascontiguousarray(array[:, ::-1]) for array in arrays])
    torch.testing.assert_close(flipped, (model.embed(files) + mirrored) / 2)
    about = model.about | {"net": "", "classes": ["a", "b", "c"], "size": 0}
    pooled = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    features = api.Model(pooled, about, "cpu").embed(files)
    assert features.shape == (12, 5)
    (read,) = model.read(files)
    assert torch.equal(features, pooled[0](model.batch(read.pixels)).relu().mean((2, 3)).detach())
    with pytest.raises(Refused, match="no last layer of 3 outputs"):
        api.Model(nn.Flatten(), about, "cpu").embed(files)


def test_loading_and_predicting_import_neither_accelerate_nor_wandb_nor_a_recipe(trained_runs, files):
    code = f"""
import sys, oneloop
model = oneloop.load({str(trained_runs / "birds")!r})
print(model.predict({str(files[0])!r})[0].label)
print([name for name in ("accelerate", "wandb", "datasets", "torchvision", "launch.run", "cifar2") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.splitlines()[0] in ("airplane", "bird")
    assert done.stdout.splitlines()[1] == "[]"


def test_predict_of_a_file_imports_neither_torch_s_compiler_nor_rich(trained_runs, files):
    """Nor does a net of torchvision, whose operators for boxes import the compiler when they first ask for it: the control."""
    code = f"""
import sys, torch
from launch.commands import main
from oneloop import by_name
main(["predict", {str(trained_runs / "birds")!r}, {str(files[0])!r}, "--top", "1"])
there = lambda: [name for name in ("torch._dynamo", "sympy", "accelerate", "rich", "matplotlib") if name in sys.modules]
print(there())
print(type(by_name.build("resnet18", (3, 64, 64), 2)).__module__, there())
asked = sys.modules["torchvision.ops.roi_align"].is_compile_supported("cpu")
from torch._dynamo.utils import is_compile_supported
print(asked == is_compile_supported("cpu"), there()[:1])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.splitlines()[2:] == ["[]", "torchvision.models.resnet []", "True ['torch._dynamo']"]


def test_a_net_that_computes_something_else_now_is_refused(birds, files, monkeypatch, trained_runs):
    """The weights fit, but the class was edited. Control: a run without a probe, of an older version, takes it."""

    def edited(self, x):
        return forward(self, x.flip(3).abs())

    assert api.load(birds).predict(files[0])
    forward = nets.cifar2.NetBatchNorm.forward
    monkeypatch.setattr(nets.cifar2.NetBatchNorm, "forward", edited)
    with pytest.raises(Refused, match="computes something else than the one that was trained") as refused:
        api.load(birds)
    assert refused.value.code == 4
    claimed(birds, probe=None)
    assert api.load(birds).predict(files[0])


def test_a_net_whose_name_does_not_tell_how_to_make_it_is_made_by_its_recipe(trained_runs, files):
    """Of the run's two stages, whose net is an nn.Sequential; and one that is called like another net."""
    model = api.load(trained_runs / "twice/second", recipe=trained_runs / "twice.py")
    assert isinstance(model.net, nn.Sequential)
    assert model.classes == tuple("0123456789")
    assert len(model.predict(files)) == 12


@pytest.mark.parametrize("name", ["Tensor", "SixViews", "no such net", "timm/hf-hub:owner/net", "timm/local-dir:net", "timm/"])
def test_a_name_that_a_folder_records_makes_a_known_net_or_none(name):
    """A folder may come from anyone: timm would fetch what it names."""
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    if name == "SixViews":  # a class that takes something else
        with pytest.raises(TypeError):
            by_name.build(name, (3, 32, 32), 2)
    else:
        assert by_name.build(name, (3, 32, 32), 2) is None
    assert isinstance(by_name.build("NetBatchNorm", (3, 32, 32), 2), nn.Module)  # control


def test_images_that_cannot_be_used_are_one_line(model, files, tmp_path):
    (tmp_path / "bad.png").write_text("no image")
    for images, why in (
        ([files[0], tmp_path / "bad.png"], f"{tmp_path}/bad.png cannot be read as an image"),
        (tmp_path / "none.png", "none.png: no such file"),
        (np.zeros((4, 4, 3)), "image 0: cannot be used as an image: an array of float64 has no known range"),
        ([np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 2), np.uint8)], r"image 1: .* shape \(4, 4, 2\) is no image"),
        ([torch.zeros(3, 4, 4)], "not a Tensor"),
    ):
        with pytest.raises(Refused, match=why) as refused:
            model.predict(images)
        assert "\n" not in str(refused.value)


def test_an_image_is_used_as_its_file_would_be(model, files, tmp_path):
    """Turned by EXIF, transparent, grey, 16 bits; and the caller's image stays as it was."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.open(files[3]).resize((40, 24))
    kinds = {
        "turned.png": image,
        "clear.png": image.convert("RGBA").rotate(10, expand=True),
        "grey.png": image.convert("L"),
        "deep.png": Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257),
    }
    for name, image in kinds.items():
        image.save(tmp_path / name, **({"exif": exif} if name == "turned.png" else {}))
        opened = Image.open(tmp_path / name)
        size = opened.size
        (of_file,), (of_image,) = model.predict(tmp_path / name), model.predict(opened)
        assert of_file == of_image, name
        assert opened.size == size
    assert model.predict(np.array(kinds["deep.png"])) == model.predict(tmp_path / "deep.png")


def test_only_a_few_batches_are_ahead_however_many_images_there_are(model, files):
    """So memory does not grow with their number. An image that cannot be read is in nobody's way."""
    taken = itertools.count()
    endless = (file for file in itertools.cycle([*files, files[0].with_name("none.png")]) if next(taken) >= 0)
    reads = model.read(endless, skip=True)
    count = 4
    for _ in range(count):
        read = next(reads)
        assert len(read.places) + len(read.unread) == file_feed.BATCH
        assert len(read.pixels) == len(read.places)
        assert all(place % 13 == 12 for place in read.unread)
    reads.close()
    assert next(taken) <= (count + file_feed.AHEAD + 1) * file_feed.BATCH + 1


@pytest.mark.parametrize(
    ("device", "threads", "size", "count"), [("cpu", 2, 224, 16), ("cpu", 16, 224, 64), ("cpu", 2, 32, 64), ("cuda", 2, 224, 64)]
)
def test_a_batch_on_a_cpu_has_8_images_of_224_pixels_for_each_thread(files, monkeypatch, device, threads, size, count):
    """What a net computes from more of them takes more memory and no less time. A GPU takes 64."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    reads = file_feed.batches(itertools.cycle(files), (3, size, size), None, torch.device(device))
    assert len(next(reads).pixels) == count
    reads.close()


@pytest.mark.parametrize("form", ["--csv", "--json"])
def test_results_are_written_as_they_come(trained_runs, files, monkeypatch, form, capsys, tmp_path):
    """What a batch shows is out before the next is computed."""
    from launch.commands import main

    monkeypatch.setattr(file_feed, "BATCH", 5)
    seen, predictions = [], api.Model.predictions

    def watched(self, read, top):
        seen.append(capsys.readouterr().out)
        return predictions(self, read, top)

    monkeypatch.setattr(api.Model, "predictions", watched)
    assert main(["predict", str(trained_runs / "birds"), *map(str, files), form, "--top", "1"]) == 0
    seen.append(capsys.readouterr().out)
    assert [text.count(".png") for text in seen] == [0, 5, 5, 2]
    if form == "--json":
        assert [each["image"] for each in json.loads("".join(seen))] == [*map(str, files)]
        monkeypatch.setattr(api.Model, "predictions", predictions)
        (tmp_path / "bad.png").write_text("no image")
        assert main(["predict", str(trained_runs / "birds"), str(tmp_path / "bad.png"), form]) == 1
        assert json.loads(capsys.readouterr().out) == []
