"""One training inside a run: its epochs, batches, log lines and checkpoints.

Created by `launch.training.begin`, used by `launch.training.loop.train`, ended by `launch.training.finish`.
"""

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from .. import processes
from ..console import complain
from ..data.augment import Augment
from ..data.feed import Feed
from ..data.images import Images
from ..data.mix import Mix
from ..data.order import order
from ..errors import Refused
from ..report.run_log import RunLog
from ..run import Run
from ..weights.tensors import weights
from . import checkpoint
from .batches import Batch, TrainingFeed
from .ema import Average
from .extend import Settings
from .publish import publish
from .schedules import Schedule
from .state import Meter, Reading, State
from .step import Step

SAVE_SECONDS = 30  # from one checkpoint to the next at the end of an epoch: an epoch may take less than a checkpoint does


@dataclass(frozen=True)
class Plan:
    """Arguments of `loop.train` on how a training goes."""

    epochs: int
    batch: int  # images
    schedule: Schedule | None
    shuffle: bool
    augments: Sequence[Augment]
    mix: Mix | None
    patience: int  # epochs
    train_mode_batch: int  # images; 0: evaluate in eval mode
    stage: str


@dataclass
class Job:
    """One training. `result` is set if an earlier launch finished it: net and optimizer are in their final state."""

    run: Run  # or its stage
    net: nn.Module
    images: Images
    optimizer: torch.optim.Optimizer
    plan: Plan
    settings: Settings  # the optimizer's options, and the factor of its rates at each step
    average: Average | None  # of the weights
    facts: dict  # of the net: its name, its numbers of parameters
    state: State
    meter: Meter
    notes: list[str]  # what the user should know before the first step
    result: dict | None = None

    def __post_init__(self) -> None:
        self.samples, self.steps = len(self.images.train), self.settings.steps  # of an epoch
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        # Seconds that this launch's steps have waited for images, and that earlier launches have trained.
        self.waited, self.trained_before = 0.0, self.meter.train_seconds
        # From this step on every process has started up; torch.compile compiles once for each size of batch.
        self.started_up = self.state.step + (self.steps if self.run.compile else 1)
        self.saved = time.perf_counter()  # when the last checkpoint was, else when this launch began
        self.logits: dict[str, Tensor] = {}  # of the test images in order, by "test" or "ema", where the last epoch had them
        self.best: dict[str, Tensor] = {}  # the best weights, until they are published with the next checkpoint

    @cached_property
    def feeds(self) -> dict[str, Feed]:
        device = self.run.accelerator.device
        names = dict.fromkeys(("train", self.images.model_selection_split, "test"))  # each once, in this order
        feeds = {name: getattr(self.images, name).feed(self.images, device) for name in names}
        return feeds | {"ema": feeds[self.images.model_selection_split]}

    @cached_property
    def training_feed(self) -> TrainingFeed:
        return TrainingFeed(self.run, self.feeds["train"], self.plan.augments, self.plan.mix, len(self.images.classes))

    # ---------------------------------------------------------------------------------------------------------------- epochs

    @property
    def finished(self) -> bool:
        """True if all epochs are done, or the last ones have used up the patience."""
        return self.state.epochs == self.plan.epochs or ("train" in self.state.results and self._used_up(self.state.epochs))

    def _used_up(self, epochs: int) -> bool:
        return 0 < self.plan.patience <= epochs - self.state.best["epoch"]

    def epochs_left(self) -> Iterator[int]:
        """The epochs that are left, from 0, each when the one before it is closed."""
        while not self.finished:
            yield self.state.epochs

    def splits_to_evaluate(self, results: dict[str, dict]) -> Iterator[str]:
        """Yield what to evaluate at the end of this epoch; "ema" is the average of the weights on the images that choose.

        `results` has those before: they say whether this epoch is the last.
        """
        selecting, done = self.images.model_selection_split, self.state.epochs + 1
        if done == self.plan.epochs or done % self.run.eval_every == 0:
            yield selecting
            if self.average:
                yield "ema"
        if done == self.plan.epochs or (results and not self._better(results) and self._used_up(done)):
            yield from (split for split in ("test", "train") if split != selecting)

    def _better(self, results: dict[str, dict]) -> bool:
        measure = self.images.task.measure
        return results["ema" if self.average else self.images.model_selection_split][measure] > self.state.best.get(measure, -1.0)

    def weights_of(self, split: str) -> contextlib.AbstractContextManager[None]:
        """Context manager: temporarily load the weights that `split` of `splits_to_evaluate` is measured with. Collective."""
        if split != "ema" or not self.average:
            return contextlib.nullcontext()
        self.average.of_main(self.run.world)
        return self.average.applied()

    @property
    def best_is_last(self) -> bool:
        """True if the best weights so far are those that the net has after the last epoch."""
        return self.state.best["epoch"] == self.state.epochs and not self.average

    # ----------------------------------------------------------------------------------------------------------------- steps

    def batches(self) -> Iterator[Batch]:
        """The batches that this epoch still has, each once its learning rates are set and the clock of the steps runs.

        Their samples are a function of (seed, epoch).
        """
        epoch, step = self.state.epochs, self.state.step
        ids = order(self.samples, self.run.seed, epoch) if self.plan.shuffle else torch.arange(self.samples)
        left = self.feeds["train"].order(ids)[(step - epoch * self.steps) * self.plan.batch :]
        for batch in self.training_feed.batches(left.split(self.plan.batch) if len(left) else (), epoch, step):
            self._set_learning_rates()
            self.meter.start()
            yield batch

    def _set_learning_rates(self) -> None:
        """Set the learning rates of the next step: a function of the step."""
        if self.settings.schedule:
            for group, rate in zip(self.optimizer.param_groups, self._rates(self.state.step), strict=True):
                group["lr"] = rate

    def _rates(self, step: int) -> list[float]:
        """The learning rates of the groups in the step after `step` others."""
        factor = self.settings.schedule(step / self.steps) if self.settings.schedule else 1.0
        return [rate * factor for rate in self.rates]

    def after_step(self, mean_loss: Tensor, images: int) -> None:
        """Count a step of this many `images`. Collective once a launch, see processes.end_startup."""
        self.meter.add(mean_loss, images)
        self.state.step += 1
        if self.run.world > 1 and self.state.step == self.started_up:
            processes.end_startup(self.run.accelerator)

    @property
    def within_epoch(self) -> bool:
        """True if the epoch has further steps: its end has its own lines and its own checkpoint."""
        return self.state.step < (self.state.epochs + 1) * self.steps

    def every(self, steps: int) -> bool:
        """Return whether this many steps are done again; never if it is 0."""
        return steps > 0 and self.state.step % steps == 0

    # ----------------------------------------------------------------------------------------------------------------- lines

    def track(self) -> RunLog:
        """The open record; the clock of the launch starts. Collective."""
        self.began = time.perf_counter() - self.state.seconds
        # An epoch that was stopped at its end, before its lines were complete, writes them again.
        kept = self.state.step if self.within_epoch else self.state.step - 1
        self.record = RunLog(self.run, self.images, self.facts, self.state.step, total=self.plan.epochs * self.steps, kept=kept)
        for line in self.notes:
            (complain if self.run.quiet else self.record.say)(line)  # a trial says nothing else
        return self.record

    def write_train_line(self, step: Step) -> None:
        """Raises Refused (3), see Finite.check. Host-device sync."""
        step.finite.check(self.state.step)
        self.record.write(self._train_line(self.meter.read(self.net)))
        self.meter.reset()

    def read_meter(self, step: Step) -> Reading:
        """Return what the last train line of an epoch says. Raises Refused (3), see Finite.check. Host-device sync."""
        reading = self.meter.read(self.net)
        step.finite.check(self.state.step)
        return reading

    def close_epoch(self, reading: Reading, results: dict[str, dict]) -> None:
        """Write the epoch's lines; keep the weights if they are the best so far."""
        state = self.state
        evals = [self._event("eval") | {"split": split} | result for split, result in results.items()]
        self.record.write(self._train_line(reading), *evals)
        whole = results.get("train", {}).get("count") == self.samples  # see evaluate._feed_of
        shown = {name if whole or name != "train" else f"train ({of['count']:,} images)": of for name, of in results.items()}
        title = f"epoch {state.epochs + 1:>{len(str(self.plan.epochs))}}/{self.plan.epochs}"
        self.record.epoch(title, reading.loss, reading.images_per_second, shown)
        self.meter.reset()
        better = results and self._better(results)
        state.epochs, state.results = state.epochs + 1, results
        if better:
            chosen = "ema" if self.average else self.images.model_selection_split
            measures = (self.images.task.measure, "f1", "threshold")
            state.best = {name: results[chosen][name] for name in measures if name in results[chosen]} | {"epoch": state.epochs}
            with self.weights_of(chosen):
                self.best = {name: tensor.detach().clone() for name, tensor in weights(self.net).items()}

    def _event(self, kind: str) -> dict:
        """The head of a line of metrics.jsonl; `images` counts from the start of the run."""
        state = self.state
        done = min((state.step - state.epochs * self.steps) * self.plan.batch, self.samples)
        images = state.epochs * self.samples + done
        return {"event": kind, "step": state.step, "epoch": state.epochs + 1, "images": images}

    def _train_line(self, reading: Reading) -> dict:
        lr, seconds = self._rates(self.state.step - 1)[0], time.perf_counter() - self.began
        known = math.isfinite(reading.gradient_norm) and self.run.accelerator.scaler is None  # fp16 leaves gradients scaled
        gradient = {"gradient_norm": reading.gradient_norm} if known else {}
        speed = {"images_per_second": reading.images_per_second, "seconds": seconds}
        feed = self.feeds["train"]
        if feed.threads:
            self.waited += feed.waited
            speed["data_wait"] = feed.waited / max(self.meter.seconds, 1e-9)
            feed.waited = 0.0
        return self._event("train") | {"loss": reading.loss, "lr": lr, **gradient, **speed}

    # ------------------------------------------------------------------------------------------------------------ checkpoints

    def save_due(self) -> bool:
        """Return whether the closed epoch ends with a checkpoint: by the main process's clock, or --save-every. Collective."""
        if self.finished:
            return True
        if self.run.save_every:
            return self.every(self.run.save_every)
        return self.run.on_main(lambda: time.perf_counter() - self.saved >= SAVE_SECONDS)

    def save(self, step: Step) -> None:
        """Save a checkpoint, if the losses, gradients and parameters are finite; publish the best weights with it.

        Collective; host-device sync.
        """
        step.finite.check(self.state.step)
        if self.within_epoch:
            self.meter.stop()
        else:  # stopped before the epoch's lines, which a resume cannot write without this gradient's norm
            self.meter.read(self.net)
        self.state.seconds = time.perf_counter() - self.began
        if self.best:  # never without a checkpoint that knows them: a resume may not come to the same
            self.state.best["weights_sha256"] = publish(
                self.run, self.net, self.images, "best.safetensors", self.best, self.state.best.get("threshold")
            )
            self.best = {}
        self.run.on_main(self.record.sync)  # the record first: a checkpoint is never ahead of it
        scaler = self.run.accelerator.scaler
        described = asdict(self.state) | {
            "origin": self.run.origin(self.images.fingerprint),
            "optimizer": checkpoint.optimizer_scalars(self.optimizer, self.net),
            "meter": {name: getattr(self.meter, name) for name in Meter.SAVED},
            "scaler": scaler.state_dict() if scaler is not None else {},
        }
        if self.finished:  # a longer run may start from the last one
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
        if self.average:
            tensors |= {f"average/{name}": tensor for name, tensor in self.average.tensors.items()}
        checkpoint.save(self.run.folder / "checkpoints", weights(self.net), tensors, described)
