"""Refusals at the start, in one line and with nothing half-written, of what would fail later."""

from dataclasses import replace

import pytest
import torch
from conftest import Tiny, optimizer_for
from tiny import tiny_images
from training import BATCH, Linear, at_step, fit

from launch import Run, train
from launch.errors import Refused
from launch.weights.tensors import weights


def test_other_configuration_is_refused_with_the_differences(start, images, tmp_path):
    fit(start(options={"lr": 0.1, "net": "Net"}), images)
    with pytest.raises(Refused, match=r"lr was 0\.1, now 0\.2; seed was 1, now 2") as refused:
        Run(data="synthetic", out=tmp_path / "run", seed=2).start("test", {"lr": 0.2, "net": "Net"})
    assert refused.value.code == 4
    other = Run(data="synthetic", out=tmp_path / "run", fresh=True)
    assert other.start("test", {"lr": 0.2, "net": "Net"}) is None
    assert other.folder == tmp_path / "run-2"


def test_other_data_is_refused(start, images):
    with pytest.raises(Refused):
        fit(start(stop_when=at_step(3)), images)
    with pytest.raises(Refused, match="trained on other data") as refused:
        fit(start(), replace(images, fingerprint="62"))
    assert refused.value.code == 4


def test_foreign_folder_is_refused_and_left_alone(start, images, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/thesis.txt").write_text("mine")
    with pytest.raises(Refused, match="not a run folder"):
        start()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]


def test_foreign_parameter_is_refused(start, images):
    temperature, model = torch.nn.Parameter(torch.ones(())), Tiny()
    with pytest.raises(Refused, match="a parameter that is not in the net") as refused:
        train(start(), model, images, torch.optim.SGD([*model.parameters(), temperature]), epochs=1, batch=BATCH)
    assert refused.value.code == 2


@pytest.mark.parametrize(("count", "fits"), [(17, False), (18, True)])
def test_one_image_by_itself_is_refused_where_batch_norm_cannot_have_it(count, fits, start):
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3), torch.nn.BatchNorm1d(3))
    images = tiny_images(count)
    if fits:
        train(start(), net, images, optimizer_for(net), epochs=1, batch=16)
    else:
        with pytest.raises(Refused, match="a batch of 1 images in 1 micro-batches leaves one image by itself") as refused:
            train(start(), net, images, optimizer_for(net), epochs=1, batch=16)
        assert refused.value.code == 2


@pytest.mark.parametrize(("stride", "fits"), [(8, False), (2, True)])
def test_one_image_is_refused_where_batch_norm_has_one_value_of_it(stride, fits, start):
    """A map of 1×1, as after global pooling, has no deviation, one of 4×4 has. The trial leaves the statistics as they were."""
    convolution = torch.nn.Conv2d(1, 2, stride, stride=stride)
    net = torch.nn.Sequential(convolution, torch.nn.BatchNorm2d(2), torch.nn.Flatten(), torch.nn.LazyLinear(3))
    net(torch.zeros(2, 1, 8, 8))
    before = {name: tensor.clone() for name, tensor in weights(net).items()}
    if fits:
        train(start(), net, tiny_images(17), optimizer_for(net), epochs=1, batch=16)
    else:
        with pytest.raises(Refused, match="batch norm cannot normalise") as refused:
            train(start(), net, tiny_images(17), optimizer_for(net), epochs=1, batch=16)
        assert refused.value.code == 2
        assert all(tensor.equal(before[name]) for name, tensor in weights(net).items())


def test_parameter_without_gradient_is_refused_by_name(start, images):
    model = Linear()
    model.idle = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(Refused, match="idle of Linear got no gradient at step 1") as refused:
        fit(start(), images, model=model)
    assert refused.value.code == 2
    model.idle.requires_grad_(False)
    fit(start(out="locked"), images, model=model, epochs=1)


def test_lazy_modules_are_refused_by_name(start, images):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(8), torch.nn.LazyBatchNorm1d(), torch.nn.Linear(8, 3))
    with pytest.raises(Refused, match=r"1\.weight, 1\.bias, 2\.weight, 2\.bias have no shape yet: call the net once") as refused:
        fit(start(), images, model=model)
    assert refused.value.code == 2


def test_running_state_that_changes_its_shape_is_refused_by_name(start, images):
    class Growing(Linear):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(1))

        def forward(self, x):
            self.seen = torch.cat((self.seen, self.seen))
            return super().forward(x)

    with pytest.raises(Refused, match="forward changes the shape or type of seen of Growing") as refused:
        fit(start(), images, model=Growing())
    assert refused.value.code == 2


def test_full_memory_is_one_line(start, images):
    class Large(Linear):
        def forward(self, x):
            return super().forward(x + torch.empty(1 << 50, dtype=torch.uint8)[0])

    with pytest.raises(Refused, match="out of memory on cpu at step 1; use a smaller --batch or --size") as refused:
        fit(start(), images, model=Large())
    assert refused.value.code == 1
