"""A recipe that trains several times: each stage is as if trained in one go, and a finished one is not trained again."""

import gc
import shutil
import signal
import weakref

import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import Tiny, optimizer_for, result
from training import BATCH, TwoConvolutions

from launch import train
from launch.errors import Refused


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_every_stage_has_the_precision_and_the_graphs_of_the_first(precision, start, images, monkeypatch):
    """A net that is compiled and trained twice; each shape of a micro-batch has a graph for itself, whichever comes first."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)
    AcceleratorState._reset_state(True)  # an earlier test's precision
    compiled, seen, graphs = torch.compile, [], []

    def backend(graph, inputs):
        graphs.append({type(given) for given in inputs})
        return graph

    monkeypatch.setattr(torch, "compile", lambda net, **how: compiled(net, backend=backend, **how))
    model = TwoConvolutions()
    run = start(compile=True)
    for stage in ("one", "two"):
        train(run, model, images, optimizer_for(model), epochs=1, batch=BATCH, stage=stage)
        seen.append(len(graphs))
    assert seen[0] * 2 == seen[1]
    assert not any(torch.SymInt in graph for graph in graphs)  # no symbol for a size
    # A single image is the probe that is recorded with the weights, in float32.
    model.fc.register_forward_hook(lambda module, inputs, logits: seen.append(logits.dtype) if len(logits) > 1 else None)
    torch.compiler.reset()
    train(run, model, images, optimizer_for(model), epochs=1, batch=BATCH, stage="three")
    assert {dtype for dtype in seen[2:]} == {torch.bfloat16 if precision == "bf16" else torch.float32}
    assert "forward" not in vars(model)  # as it was: usable without the accelerator
    AcceleratorState._reset_state(True)


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_stages_go_on_alike_trained_now_or_before(micro_batches, start, images, tmp_path):
    """Two stages in one go, and killed between them: the same net, batch norm's statistics included, rates and random numbers."""

    def both(run):
        try:
            torch.manual_seed(run.seed)
            model = Tiny()
            optimizer = optimizer_for(model)
            for stage in ("one", "two"):
                options = {"epochs": 2, "batch": BATCH, "schedule": lambda epoch: 1 - epoch / 2}
                train(run, model, images, optimizer, stage=stage, **options)
                if stage == "one":
                    torch.nn.init.normal_(model.fc.bias)  # a draw between stages
        finally:
            run.end()
        return model

    model = both(start(out="straight", micro_batches=micro_batches))
    assert model.norm.num_batches_tracked == 4 * 8
    in_stage_two = lambda step, batch: (tmp_path / "run/one/result.json").exists() and (step, batch) == (4, None)  # noqa: E731
    with pytest.raises(Refused, match="stopped by SIGTERM at step 5"):
        both(start(micro_batches=micro_batches, stop_when=in_stage_two))
    both(start(micro_batches=micro_batches))
    for stage in ("one", "two"):
        assert result(tmp_path / "run" / stage)["weights_sha256"] == result(tmp_path / "straight" / stage)["weights_sha256"]


def test_empty_result_of_a_stage_is_written_again(start, images, tmp_path):
    for _ in range(2):
        torch.manual_seed(0)
        trained = train(run := start(), model := Tiny(), images, optimizer_for(model), epochs=1, batch=BATCH, stage="one")
        run.end()
        (tmp_path / "run/one/result.json").write_text("{}")
    assert trained["steps"] == 8


@pytest.mark.parametrize("harm", ["damage", "loss", None])
def test_finished_stage_whose_weights_are_lost_is_refused(harm, start, images, tmp_path):
    def first(run):
        try:
            torch.manual_seed(run.seed)
            model = Tiny()
            train(run, model, images, optimizer_for(model), epochs=2, batch=BATCH, stage="one")
        finally:
            run.end()
        return model

    trained = first(start()).fc.weight
    newest = sorted((tmp_path / "run/one/checkpoints").iterdir())[-1]
    if harm == "damage":
        (newest / "model.safetensors").write_bytes(b"")
    if harm == "loss":
        shutil.rmtree(newest.parent)
    if harm:
        with pytest.raises(Refused, match="run/one is finished, but its last checkpoint cannot be used") as refused:
            first(start())
        assert refused.value.code == 4
    else:  # control
        assert first(start()).fc.weight.equal(trained)


def test_signal_while_a_stage_draws_stops_before_the_next(start, images, tmp_path, monkeypatch):
    run, model = start(), Tiny()
    monkeypatch.setattr("launch.report.show.show", lambda *_: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Refused, match="stopped by SIGTERM") as refused:
        train(run, model, images, optimizer_for(model), epochs=1, batch=BATCH, stage="one")
    assert signal.signal(signal.SIGTERM, signal.SIG_DFL) == signal.SIG_IGN  # what comes now cannot disturb the end
    assert refused.value.code == 143
    assert (tmp_path / "run/one/result.json").exists()


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_layer_locked_between_stages_stays(micro_batches, start, images):
    """By requires_grad alone, with its last gradient still there and the optimizer still holding it."""
    run, model = start(micro_batches=micro_batches), Tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train(run, model, images, optimizer, epochs=1, batch=BATCH, stage="one")
    model.conv.requires_grad_(False)
    before = model.conv.weight.clone()
    train(run, model, images, optimizer, epochs=1, batch=BATCH, stage="two")
    assert model.conv.weight.equal(before)


def test_trained_net_is_let_go(start, images):
    run, model = start(), Tiny()
    train(run, model, images, optimizer_for(model), epochs=1, batch=BATCH, stage="one")
    there = weakref.ref(model)
    del model
    gc.collect()
    assert there() is None
