"""One training inside a run: its batches, log lines, checkpoints and result.

Created by `launch.begin`, used by `launch.loop.train`.
"""

import contextlib
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from . import checkpoint, processes
from .data import Feed, Images, PictureFeed, PictureSplit, bounds, feed_of, order
from .errors import Refused
from .record.track import Track
from .run import Run
from .screen import complain
from .shorter import Settings
from .state import Meter, Reading, State
from .step import Step
from .weights import load

WORTH_SAYING = 0.05  # of the time of the training
SAVE_SECONDS = 30  # from one checkpoint to the next at the end of an epoch: an epoch may take less than a checkpoint does


@dataclass
class Job:
    """One training. `result` is set if an earlier launch finished it: net and optimizer are in their final state."""

    run: Run  # or its stage
    net: nn.Module
    images: Images
    optimizer: torch.optim.Optimizer
    epochs: int
    batch: int  # images
    shuffle: bool
    stage: str
    settings: Settings  # the optimizer's options, and the factor of its rates at each step
    facts: dict  # of the net: its name, its numbers of parameters
    state: State
    meter: Meter
    notes: list[str]  # what the user should know before the first step
    result: dict | None = None

    def __post_init__(self) -> None:
        self.samples, self.steps = len(self.images.train), self.settings.steps  # of an epoch
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        # Seconds that this launch's steps have waited for pictures, and that earlier launches have trained.
        self.waited, self.trained_before = 0.0, self.meter.train_seconds
        # From this step on every process has started up; torch.compile compiles once for each size of batch.
        self.started_up = self.state.step + (self.steps if self.run.compile else 1)
        self.saved = time.perf_counter()  # when the last checkpoint was, else when this launch began
        self.best: dict[str, Tensor] = {}  # the best weights, until they are published with the next checkpoint

    @cached_property
    def feeds(self) -> dict[str, Feed | PictureFeed]:
        device = self.run.accelerator.device
        names = dict.fromkeys(("train", self.images.chooser, "test"))  # each once, in this order
        return {name: feed_of(getattr(self.images, name), self.images, device) for name in names}

    # ----------------------------------------------------------------------------------------------------------------- steps

    def batches_left(self) -> Iterator[Tensor]:
        """The samples of each batch that this epoch still has, int64 (batch,) or fewer: a function of (seed, epoch)."""
        epoch = self.state.epochs
        ids = order(self.samples, self.run.seed, epoch) if self.shuffle else torch.arange(self.samples)
        left = self.feeds["train"].order(ids)[(self.state.step - epoch * self.steps) * self.batch :]
        batches = left.split(self.batch) if len(left) else ()
        self.feeds["train"].expect([part for batch in batches for part in self._own(batch)])
        yield from batches

    def _own(self, batch: Tensor) -> Iterator[Tensor]:
        """This process's slices of a batch."""
        shards, rank, world = self.run.shards, self.run.rank, self.run.world
        cuts = bounds(len(batch), shards)[rank * shards // world : (rank + 1) * shards // world + 1]
        return (batch[start:end] for start, end in itertools.pairwise(cuts) if start < end)

    def set_learning_rates(self) -> None:
        """Set the learning rates of the next step: a function of the step."""
        if self.settings.schedule:
            for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                group["lr"] = rate * self.settings.schedule(self.state.step / self.steps)

    def count(self, mean_loss: Tensor, images: int) -> None:
        """Count a step. Collective once a launch, see processes.end_startup."""
        self.meter.add(mean_loss, images)
        self.state.step += 1
        if self.run.world > 1 and self.state.step == self.started_up:
            processes.end_startup(self.run.accelerator)

    @property
    def within_epoch(self) -> bool:
        """Whether the epoch has further steps: its end has its own lines and its own checkpoint."""
        return self.state.step < (self.state.epochs + 1) * self.steps

    def due(self, every: int) -> bool:
        return every > 0 and self.state.step % every == 0

    def splits_due(self) -> tuple[str, ...]:
        """The splits to evaluate at the end of this epoch."""
        chooser = self.images.chooser
        if self.state.epochs + 1 == self.epochs:
            return ("test", "train") if chooser == "test" else (chooser, "test", "train")
        return (chooser,) if (self.state.epochs + 1) % self.run.eval_every == 0 else ()

    # ----------------------------------------------------------------------------------------------------------------- lines

    def track(self) -> Track:
        """The open record; the clock of the launch starts. Collective."""
        self.began = time.perf_counter() - self.state.seconds
        # An epoch that was stopped at its end, before its lines were complete, writes them again.
        kept = self.state.step if self.within_epoch else self.state.step - 1
        self.record = Track(self.run, self.images, self.facts, self.state.step, total=self.epochs * self.steps, kept=kept)
        for line in self.notes:
            (complain if self.run.quiet else self.record.say)(line)  # a trial says nothing else
        return self.record

    def write_train_line(self) -> None:
        """Host-device sync."""
        self.record.write(self._train_line(self.meter.read(self.net)))
        self.meter.reset()

    def close_epoch(self, reading: Reading, results: dict[str, dict]) -> None:
        """Write the epoch's lines; keep the weights if they are the best so far."""
        state = self.state
        evals = [self._event("eval") | {"split": split} | result for split, result in results.items()]
        self.record.write(self._train_line(reading), *evals)
        title = f"epoch {state.epochs + 1:>{len(str(self.epochs))}}/{self.epochs}"
        self.record.epoch(title, reading.loss, reading.images_per_second, results)
        self.meter.reset()
        state.epochs, state.results = state.epochs + 1, results
        if results and (accuracy := results[self.images.chooser]["accuracy"]) > state.best["accuracy"]:
            state.best = {"accuracy": accuracy, "epoch": state.epochs}
            self.best = {name: tensor.detach().clone() for name, tensor in checkpoint.weights(self.net).items()}

    def _event(self, kind: str) -> dict:
        """The head of a line of metrics.jsonl; `images` counts from the start of the run."""
        state = self.state
        done = min((state.step - state.epochs * self.steps) * self.batch, self.samples)
        images = state.epochs * self.samples + done
        return {"event": kind, "step": state.step, "epoch": state.epochs + 1, "images": images}

    def _train_line(self, reading: Reading) -> dict:
        lr, seconds = self.optimizer.param_groups[0]["lr"], time.perf_counter() - self.began
        known = math.isfinite(reading.gradient_norm) and self.run.accelerator.scaler is None  # fp16 leaves gradients scaled
        gradient = {"gradient_norm": reading.gradient_norm} if known else {}
        speed = {"images_per_second": reading.images_per_second, "seconds": seconds}
        if isinstance(feed := self.feeds["train"], PictureFeed):
            self.waited += feed.waited
            speed["data_wait"] = feed.waited / max(self.meter.seconds, 1e-9)
            feed.waited = 0.0
        return self._event("train") | {"loss": reading.loss, "lr": lr, **gradient, **speed}

    # ------------------------------------------------------------------------------------------------------------ checkpoints

    def save_due(self) -> bool:
        """Whether the epoch that was closed ends with a checkpoint: by the main process's clock, or --save-every. Collective."""
        if self.state.epochs == self.epochs:
            return True
        if self.run.save_every:
            return self.due(self.run.save_every)
        return self.run.on_main(lambda: time.perf_counter() - self.saved >= SAVE_SECONDS)

    def save(self, step: Step) -> None:
        """Save a checkpoint, if the losses, gradients and parameters are finite; publish the best weights with it.

        Collective; host-device sync.
        """
        step.check(self.state.step)
        if self.within_epoch:
            self.meter.stop()
        else:  # stopped before the epoch's lines, which a resume cannot write without this gradient's norm
            self.meter.read(self.net)
        self.state.seconds = time.perf_counter() - self.began
        if self.best:  # never without a checkpoint that knows them: a resume may not come to the same
            self.state.best["weights_sha256"] = checkpoint.weights_sha256(self.best)
            self._publish("best.safetensors", self.best, self.state.best["weights_sha256"])
            self.best = {}
        self.run.on_main(self.record.sync)  # the record first: a checkpoint is never ahead of it
        scaler = self.run.accelerator.scaler
        described = asdict(self.state) | {
            "origin": self.run.origin(self.images.fingerprint),
            "optimizer": checkpoint.optimizer_scalars(self.optimizer, self.net),
            "meter": {name: getattr(self.meter, name) for name in Meter.SAVED},
            "scaler": scaler.state_dict() if scaler is not None else {},
        }
        if self.state.epochs == self.epochs:  # a longer run may start from the last one
            described["settings"] = self.settings.sha256(self.state.step)
        self.run.on_main(lambda: self._write_checkpoint(described))
        self.saved = time.perf_counter()

    def _write_checkpoint(self, described: dict) -> None:
        broken = [name for name, parameter in self.net.named_parameters() if not parameter.isfinite().all()]  # host-device sync
        if broken:
            raise Refused(
                f"{broken[0]} is not finite after step {self.state.step}, and was not saved. "
                "A smaller --lr is the usual cure; the last checkpoint is sound",
                3,
            )
        tensors = checkpoint.optimizer_state(self.optimizer, self.net) | {"log/loss": self.meter.loss}
        checkpoint.save(self.run.folder / "checkpoints", checkpoint.weights(self.net), tensors, described)

    # ------------------------------------------------------------------------------------------------------------------- end

    @contextlib.contextmanager
    def best_weights(self) -> Iterator[None]:
        """Within it the net has the best weights, and afterwards its own again. Collective. Raises Refused (1, 4)."""
        path, kept = self.run.folder / "best.safetensors", {name: t.clone() for name, t in checkpoint.weights(self.net).items()}
        best = self.run.on_main(lambda: load(path))
        if checkpoint.weights_sha256(best) != self.state.best["weights_sha256"]:
            raise Refused(f"{path} has other weights than those of epoch {self.state.best['epoch']}; --fresh starts over", 4)
        checkpoint.load_weights(self.net, best)
        try:
            yield
        finally:
            checkpoint.load_weights(self.net, kept)

    def finish(self, draw: Callable[[Path], None] | None) -> dict:
        """Publish the weights, draw the pictures, record the result, which this returns. Collective."""
        run, state = self.run, self.state
        state.seconds = time.perf_counter() - self.began
        digest = checkpoint.weights_sha256(checkpoint.weights(self.net))  # host-device sync
        result = {
            "recipe": run.recipe,
            "net": run.config.get("net", self.facts["model"]),
            "parameters": self.facts["parameters"],
            "trainable": self.facts["trainable"],
            "epochs": state.epochs,
            "steps": state.step,
            **state.results,
            "best": state.best,
            "images_per_second": state.epochs * self.samples / max(self.meter.train_seconds, 1e-9),
            "seconds": state.seconds,
            "world_size": run.world,
            "precision": run.accelerator.mixed_precision,
            "weights_sha256": digest,
        }
        if run.world > 1:
            processes.set_timeout(processes.START_SECONDS)  # while the main process draws
        self._publish("model.safetensors", checkpoint.weights(self.net), digest)
        waited = self.waited / max(self.meter.train_seconds - self.trained_before, 1e-9)
        if waited > WORTH_SAYING:
            cure = "more --threads or cores, a smaller --stored, or a larger ONELOOP_STORED_GIB if not all are stored"
            self.record.say(f"{waited:.0%} of the training's time was waiting for pictures: {cure}")
        self.record.finish(result, lambda: self._show(result, draw))
        run.finish(result)  # last, as the mark of a finished run: what is killed before shows itself when it resumes
        return result

    def reset_for_next_stage(self) -> None:
        """Reset what the next stage sees, so that it does not depend on when, or on how many processes, this one ran."""
        torch.manual_seed(self.run.seed)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate
        if self.stage:
            self.run.accelerator.free_memory()  # it holds every net that it has prepared

    def _publish(self, name: str, weights: dict[str, Tensor], sha256: str) -> None:
        """Write `weights` of the net, of this digest, into the run folder, with what their user needs to know. Collective."""
        images, net = self.images, self.run.config.get("net", self.facts["model"])
        about: dict = {"recipe": self.run.recipe, "classes": images.classes, "mean": images.mean, "std": images.std}
        about |= {"shape": [*images.train.shape], "size": images.size, "net": net, "weights_sha256": sha256}
        if isinstance(images.train, PictureSplit):
            about["stored"] = images.train.rule.stored
        metadata = {"oneloop": json.dumps(about)}
        self.run.on_main(lambda: checkpoint.write_tensors(self.run.folder / name, weights, metadata))

    def _show(self, result: dict, draw: Callable[[Path], None] | None) -> None:
        """The recipe's own pictures and those of every run: main process only, nothing in it is collective."""
        if draw:
            draw(self.run.folder)
        if not self.run.quiet:
            from .record import show  # matplotlib takes half a second: only where it draws

            show.show(self.run, self.net, self.feeds["test"], self.images, result)
