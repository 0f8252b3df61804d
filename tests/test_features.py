"""--mode frozen computes features once: the right ones, the same on any number of processes and threads, never stale ones."""

import json
import shutil

import pytest
import torch
from conftest import ROOT, metrics, result
from jobs import begin
from photos import photo, write_photos
from safetensors.torch import load_file
from torch import nn

from launch import evaluate, sources, train
from launch.data.augment import EpochRng, random_resized_crop
from launch.data.disk_feed import DiskFeed
from launch.data.features import by_turns
from launch.data.order import random_integers
from launch.data.resize import ResizeRule
from launch.data.store import LIMIT
from launch.errors import Refused
from launch.features.backbone import Backbone
from launch.features.compute import Views, Work, with_features
from launch.features.head import Head, trained_on_features
from launch.processes import accelerator
from launch.report.runs import read
from launch.sources.options import DataOptions
from launch.trained import rebuild
from nets.named import build
from nets.transfer import lock, unlock

RULE = ResizeRule(size=16, cache_size=18)
CPU = torch.device("cpu")


class Small(nn.Module):
    """(N, 3, 16, 16) -> (N, 2), with batch norm and dropout; `peeks`: an image's output depends on the others in its batch."""

    def __init__(self, peeks=False):
        super().__init__()
        self.conv, self.norm, self.drop, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Linear(4, 2)
        self.peeks = peeks

    def forward(self, x):
        out = torch.relu(self.norm(self.conv(x))).mean((2, 3))
        return self.fc(self.drop(out - out.mean(0) if self.peeks else out))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ONELOOP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("data") / "photos", {"ant": 22, "bee": 11})


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(1)
    made = Small()
    made.norm.running_mean.uniform_(-1, 1)
    return made


class Numbers:
    """Random numbers as functions of seed, view and content, written out."""

    def __init__(self, seed, view, contents):
        self.seed, self.view, self.contents = seed, view, contents

    def integers(self, kind, n):
        return random_integers(self.seed, self.view, self.contents, kind, n)

    def uniform(self, kind):
        return self.integers(kind, 1 << 24).double() / (1 << 24)


def images_of(folder, rule=RULE, **options):
    return sources.custom(str(folder), rule, DataOptions(test=0.3), validation=0.2, **options)


def computed(net, images, views=None, work=None):
    with Backbone(net, "fc", images, accelerator("no")) as backbone:
        return with_features(images, backbone, views, work)


def rows(images, name="train", view=0):
    features = getattr(images, name).features
    return features.table[features.rows[:, view]]


def directly(net, split, images, augments=()):
    """The features of each image in a batch of its own."""
    feed, found = DiskFeed(split, images.mean, images.std, CPU), []
    net.eval()
    with torch.no_grad():
        for index in range(len(split)):
            pixels, _ = feed.batch(torch.tensor([index]), augments)
            found.append(torch.relu(net.norm(net.conv(pixels))).mean((2, 3))[0])
    net.train()
    return torch.stack(found)


def test_features_are_what_the_net_passes_to_its_last_layer(folder, net):
    images = images_of(folder)
    found, count = computed(net, images)
    assert count == len(images.train) + len(images.validation) + len(images.test) == 33
    for name in ("train", "validation", "test"):
        torch.testing.assert_close(rows(found, name), directly(net, getattr(images, name), images))
    assert isinstance(net.fc, nn.Linear)
    assert all(module.training for module in net.modules())
    again, count = computed(net, images_of(folder))
    assert count == 0
    assert torch.equal(rows(again), rows(found))


def test_a_view_is_a_function_of_seed_view_and_image(folder, net, tmp_path):
    images = images_of(folder)
    found, _ = computed(net, images, Views([random_resized_crop], "crop", seed=3, count=2))

    def cropped(sizes, ids, view):
        numbers = torch.tensor([int(image.sha256[:15], 16) for image in images.train.images])[ids]
        return random_resized_crop(sizes, Numbers(3, view, numbers))

    for view in range(2):
        expected = directly(net, images.train, images, [lambda sizes, ids, view=view: cropped(sizes, ids, view)])
        torch.testing.assert_close(rows(found, view=1 + view), expected)
    assert not torch.allclose(rows(found, view=1), rows(found, view=2))
    other, count = computed(net, images, Views([random_resized_crop], "crop", seed=4, count=1))
    assert count == len(images.train)  # the images themselves are known
    assert not torch.allclose(rows(other, view=1), rows(found, view=1))
    fewer = write_photos(tmp_path / "photos", {"ant": 20, "bee": 10})  # other places in their class, the same content
    less, _ = computed(net, images_of(fewer), Views([random_resized_crop], "crop", seed=3, count=1))
    by_content = {image.sha256: row for image, row in zip(images.train.images, rows(found, view=1), strict=True)}
    pairs = zip(images_of(fewer).train.images, rows(less, view=1), strict=True)
    shared = [(row, by_content[image.sha256]) for image, row in pairs if image.sha256 in by_content]
    assert len(shared) > 5
    assert all(torch.equal(one, other) for one, other in shared)


def test_bits_do_not_depend_on_threads_processes_or_what_was_known(folder, net, cache, monkeypatch):
    monkeypatch.setattr("launch.features.compute.BLOCK", 5)
    images, before = images_of(folder), torch.get_num_threads()
    whole, _ = computed(net, images)
    shutil.rmtree(cache)
    others = len(images.validation) + len(images.test)
    assert computed(net, images_of(folder, limit=4))[1] == 4 + others
    try:
        torch.set_num_threads(3)
        rest, count = computed(net, images, work=Work(rank=1, world=2))
    finally:
        torch.set_num_threads(before)
    assert count == len(images.train) - 4
    for name in ("train", "validation", "test"):
        assert torch.equal(rows(rest, name), rows(whole, name))


def test_control_a_net_that_looks_at_the_whole_batch_gets_one_image_at_a_time(folder):
    torch.manual_seed(1)
    peeking, images = Small(peeks=True), images_of(folder)
    with Backbone(peeking, "fc", images, accelerator("no")) as backbone:
        assert backbone.batch == 1
        found, _ = with_features(images, backbone)
    assert rows(found).abs().max() == 0  # each minus the mean of its batch, which it is alone in


@pytest.mark.parametrize("change", ["weights", "statistics", "code", "size", "image", "mean"])
def test_nothing_stale_is_used(folder, net, change, tmp_path, monkeypatch):
    place, rule, other = tmp_path / "photos", RULE, Small()
    shutil.copytree(folder, place)
    other.load_state_dict(net.state_dict())
    first, _ = computed(other, images_of(place, rule))
    expected = 33
    if change == "weights":
        other.conv.weight.data[0, 0, 0, 0] += 0.5
    elif change == "statistics":
        other.norm.running_mean[0] += 1
    elif change == "code":  # the same weights, computed otherwise
        monkeypatch.setattr(torch, "relu", torch.nn.functional.leaky_relu)
    elif change == "size":
        rule = ResizeRule(size=16, cache_size=17)
    elif change == "image":
        photo(900).save(place / "ant/0003.jpg", "JPEG")
        expected = 1
    images = images_of(place, rule)
    if change == "mean":
        images = type(images)(**{**vars(images), "mean": (0.5, 0.5, 0.5)})
    second, count = computed(other, images)
    assert count == expected
    assert rows(first).shape == rows(second).shape or change == "image"
    other.fc.weight.data += 1  # the last layer is not what features depend on
    assert computed(other, images)[1] == 0


def test_what_a_kill_or_a_bad_disk_leaves_is_used_as_far_as_it_is_sound(folder, net, cache):
    images = images_of(folder)
    whole, _ = computed(net, images)
    expected = rows(whole).clone()
    (path,) = cache.glob("features-*.f32")
    content = path.read_bytes()
    path.write_bytes(content[:-7])  # in the middle of a record
    found, count = computed(net, images)
    assert count == 1
    assert torch.equal(rows(found), expected)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    found, count = computed(net, images)
    assert count == 1
    assert torch.equal(rows(found), expected)
    path.write_bytes(b"x" * 999)
    assert computed(net, images)[1] == 33


def test_features_count_in_the_disk_allowance(folder, net, cache, monkeypatch):
    images = images_of(folder)
    monkeypatch.setenv(LIMIT, "1e-6")
    with pytest.raises(Refused, match=rf"features take .* MiB more .* raise {LIMIT}") as refused:
        computed(net, images)
    assert refused.value.code == 1
    assert not [*cache.glob("features-*")]
    monkeypatch.setenv(LIMIT, "1")
    computed(net, images)
    assert [*cache.glob("features-*")]


def test_they_are_deleted_with_what_else_the_cache_holds(folder, net, cache, oneloop):
    computed(net, images_of(folder))
    (path,) = cache.glob("features-*.f32")
    code, out, _ = oneloop("data", folder, "--clear")
    assert (code, path.exists()) == (0, False)
    assert f"deleted {path}" in out


# ---------------------------------------------------------------------------------------------------------------- training


def fit(run, model, images, **options):
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.02, fused=True)
    try:
        return train(run, model, images, optimizer, epochs=3, batch=8, ema=0.9, **options)
    finally:
        run.end()


def test_training_on_features_is_training_the_last_layer_of_the_locked_net(folder, net, start, tmp_path):
    images, models = images_of(folder), [Small(), Small()]
    for model in models:
        model.load_state_dict(net.state_dict())
        lock(model)
        unlock(model, "fc")
    fit(start("each"), models[0], images)
    run = start("once")
    head, found, options = trained_on_features(run, models[1], images, ("fc",), Views(), {})
    assert isinstance(head, Head)
    fit(run, head, found, **options)
    for one, other in zip(metrics(tmp_path / "each"), metrics(tmp_path / "once"), strict=True):
        assert one == pytest.approx(other, abs=1e-4)
    for name in ("model", "best", "ema"):
        each, once = (load_file(tmp_path / place / f"{name}.safetensors") for place in ("each", "once"))
        assert each.keys() == once.keys()
        for key in each:
            torch.testing.assert_close(each[key], once[key], atol=1e-4, rtol=1e-4)
    each, once = (result(tmp_path / place) for place in ("each", "once"))
    assert (each["parameters"], each["trainable"], each["net"]) == (once["parameters"], once["trainable"], once["net"])
    with torch.no_grad():
        models[1].fc.weight += 1
    assert head.get_submodule("fc") is models[1].fc


def test_views_come_in_turn_and_differ_by_epoch(folder, net, start):
    images = images_of(folder)
    with Backbone(net, "fc", images, accelerator("no")) as backbone:
        found, _ = with_features(images, backbone, Views([random_resized_crop], "crop", 1, 2))
    feed, rng = found.train.feed(found, CPU), EpochRng(1, len(found.train), CPU)
    ids, seen = torch.arange(len(found.train)), []
    for epoch in range(3):
        rng.begin(epoch)
        seen.append(feed.batch(ids, [lambda views, ids: by_turns(views, rng.of(ids))])[0])
    for index in range(len(ids)):
        of_three = {tuple(rows(found, view=view)[index].tolist()) for view in range(3)}
        assert {tuple(epoch[index].tolist()) for epoch in seen} == of_three
    assert torch.equal(feed.batch(ids)[0], rows(found))


@pytest.mark.parametrize("what", ["mix", "heads", "more", "asked"])
def test_where_features_cannot_be_computed_once_it_is_said(folder, net, start, what, capsys):
    class More(Small):
        def forward(self, x):
            return super().forward(x) * 2

    more = More()
    nn.init.zeros_(more.fc.weight)
    nn.init.zeros_(more.fc.bias)
    run, images, options = start(), images_of(folder), {"mix": (lambda *_: None) if what == "mix" else None}
    model, last = more if what == "more" else net, ("fc", "fc") if what == "heads" else ("fc",)
    run.trains = what != "asked"
    assert trained_on_features(run, model, images, last, Views(), options) == (model, images, options)
    said = {"mix": "--mix mixes pixels", "heads": "several last layers", "more": "does more after fc than return the logits"}
    out = capsys.readouterr().out
    assert ("runs in each epoch" in out) == (what in said)
    assert said.get(what, "") in out
    if what in said:
        with pytest.raises(Refused, match=rf"--views 2 needs features that are computed once, but .*{said[what]}") as refused:
            trained_on_features(run, model, images, last, Views(count=2), options)
        assert refused.value.code == 2


# -------------------------------------------------------------------------------------------------------------- the recipe


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Weights of a net for other classes."""
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("source") / "weights.pt"
    torch.save(build("CifarResNet", 5, 16).state_dict(), path)
    return path


def kept_rows(cache):
    (path,) = cache.glob("features-*.f32")
    with open(path, "rb") as file:
        head = file.readline()
    return (path.stat().st_size - len(head)) // (36 + 4 * json.loads(head)["width"])


def begin_run(folder, source, place, *flags, chaos=(), processes=None, **more):
    fixed = ("--net", "CifarResNet", "--size", 16, "--batch", 8, "--epochs", 3, "--threads", 1, "--micro-batches", 2)
    fixed = (*fixed, "--mode", "frozen", "--validation", 0.2, "--test", 0.3, "--views", 1, "--augment", "crop", "--ema", 0.9)
    fixed = (*fixed, "--out", "run")
    flags = (*fixed, "--data", folder, "--source", source, *flags)
    return begin(*chaos, "--", ROOT / "recipes/custom.py", *flags, cwd=place, processes=processes, **more)


def test_killed_anywhere_on_any_number_of_processes_frozen_ends_with_the_same_bits(folder, source, tmp_path):
    places = [tmp_path / name for name in ("whole", "killed")]
    for place in places:
        place.mkdir()
    job = begin_run(folder, source, places[0])
    assert job.wait(60) == 0, job.output
    assert "1 views of it (crop), 52 computed in" in job.output
    cache = {"env": {"ONELOOP_CACHE": str(tmp_path / "other")}}
    kill = ("--do", "SIGKILL")
    assert begin_run(folder, source, places[1], chaos=("--at", "features=2", *kill), **cache).wait(60) == -9
    kept = kept_rows(tmp_path / "other")
    assert 0 < kept < 52
    job = begin_run(folder, source, places[1], chaos=("--rank", 1, "--at", "step=5", *kill), processes=2, **cache)
    assert job.wait(60) != 0
    assert "computed in" in job.output
    job = begin_run(folder, source, places[1], processes=2, **cache)
    assert job.wait(60) == 0, job.output
    assert "all known from before" in job.output
    for name in ("model", "best", "ema"):
        one, other = (load_file(place / f"run/{name}.safetensors") for place in places)
        assert [key for key, tensor in one.items() if not tensor.equal(other[key])] == []
    assert metrics(places[0] / "run") == metrics(places[1] / "run")
    before = torch.load(source, weights_only=True)
    after = load_file(places[0] / "run/model.safetensors")
    assert {key for key, tensor in after.items() if not tensor.equal(before[key])} == {"linear.weight", "linear.bias"}
    trained = rebuild(read(places[0] / "run"), weights="last", recipe=ROOT / "recipes/custom.py")
    assert trained.images.train.features is None
    logged = result(places[0] / "run")["test"]
    found = evaluate(trained.run, trained.net, trained.images)
    assert found == pytest.approx({key: logged[key] for key in found}, abs=1e-4)
