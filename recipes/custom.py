"""Your own photographs: any folder or table, any classes, any sizes, from scratch or from weights trained elsewhere.

Source  transfer notes, sections 2.2 to 2.4: photographs of 224 × 224, transfer learning, which net for which data. Their settings
        are for other data; AdamW, random resized crops and what can be switched on are today's usual ones (docs/training.md)
Data    --data: a folder with a folder for each class, split into train/, val/ and test/ or not; a CSV or parquet table; a data
        set of the Hugging Face hub (owner/name). docs/custom.md says what is found, `oneloop data PATH` shows it
Expect  the defaults are those of a measurement: ants and bees (245 to train, 153 to test), 3 seeds, on 2 cores of an AMD EPYC.
        Test accuracy of EfficientNet-Lite0 from ImageNet, 64 pixels, 12 epochs: 0.745 ± 0.013; 0.695 ± 0.048 with --lr 0.001;
        0.617 ± 0.010 with --augment trivial --no-constant --ema 0.99 as well. ResNet-20 from CIFAR-10, 32 pixels, 30 epochs:
        0.739 ± 0.060; 0.741 ± 0.014 with these three and --lr 0.01. docs/custom.md has a whole walk
Run     accelerate launch recipes/custom.py --data photos/ --net resnet50
        accelerate launch recipes/custom.py --data photos/ --net timm/vit_small_patch16_224 --size 160 --layer-decay 0.75
        accelerate launch recipes/custom.py --data photos/ --source hf://timm/resnet18.a1_in1k --head-epochs 3
        accelerate launch recipes/custom.py --data table.csv --mode gradual --source runs/custom/resnet18-0a1b2c3d
        accelerate launch recipes/custom.py --data synthetic --mode scratch --size 32 --epochs 5
        accelerate launch --config_file launch/gpus.yaml recipes/custom.py --data photos/ --net timm/convnext_tiny --size 224

finetune starts from weights trained elsewhere, the published ones without --source, and trains all of them, those at a tenth of
the rate of the new last layer. Images are prepared as these weights want. frozen trains the last layer only. gradual does the
same for half of the epochs, then unlocks the last block. scratch trains from random weights.

Where the images are not split, 10 % of each class validate (--validation) and 10 % test (--test). Validation images choose
the best weights; the test images are measured at the end only. With --validation 0 none validate, and the test images choose.
"""

from contextlib import suppress
from functools import partial
from typing import Literal

from launch import Run, cli, sources, train
from launch.console import say
from launch.data import Images, cutmix, either, mixup, rand_augment, random_resized_crop, trivial_augment
from launch.data.images import prepared
from launch.data.resize import CENTER_CROP, INTERPOLATIONS
from launch.data.task import binary_loss
from launch.errors import Refused, first_line
from launch.features.compute import Views
from launch.features.head import trained_on_features
from launch.report.runs import WORDS, tested
from launch.run import OwnRun
from launch.sources.options import DataOptions
from launch.training.begin import check_batches
from launch.training.optimizers import groups
from launch.training.schedules import Schedule, cosine, warm_up
from launch.weights import for_classes, kept, load, load_into, without_prefix
from launch.weights.hf import offline_if_unreachable
from nets.named import TIMM, build, depths, heads, last_block, published_preprocessing, scale
from nets.sizes import as_timm_has_them
from nets.transfer import add_trainable, lock, unlock
from nets.zoo import names, weights_url

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BACKBONE_LR = 0.1  # the learning rate of what was trained before, against that of the new last layer
WARM_UP = 0.05  # of the epochs
AUGMENTS = {
    "crop": [random_resized_crop],
    "trivial": [random_resized_crop, trivial_augment],
    "rand": [random_resized_crop, rand_augment()],
}
MIXES = {"none": None, "mixup": mixup(), "cutmix": cutmix(), "either": either(mixup(), cutmix())}


def main(
    run: OwnRun,
    data: DataOptions = DataOptions(),
    net: str = "resnet18",
    mode: Literal["scratch", "finetune", "frozen", "gradual"] = "finetune",
    pretrained: bool = False,
    source: str = "",
    sha256: str = "",
    average: bool = True,
    size: int = 0,
    class_weights: Literal["none", "balanced"] = "none",
    smoothing: float = 0.0,
    augment: Literal[tuple(AUGMENTS)] = "crop",
    mix: Literal[tuple(MIXES)] = "none",
    epochs: int = 30,
    batch: int = 32,
    lr: float = 3e-3,
    layer_decay: float = 1.0,
    head_epochs: int = 0,
    weight_decay: float = 0.05,
    constant: bool = True,
    ema: float = 0.0,
    patience: int | None = 0,
    views: int = 0,
):
    """Train on images of your own.

    Args:
        net: A net by torchvision's name, one of the package's own (Net, MyNet1, CifarResNet …), or timm/NAME.
        mode: What is trained, and from which weights.
        pretrained: Start from the published weights of torchvision or timm, as all modes but scratch do without --source.
        source: Start from these weights: a file, a URL, hf://owner/name[@revision] or a folder of that form, or a run folder.
        sha256: Expected sha256 of a source at a URL.
        average: Of weights and their average over the training in one file, take the average.
        size: Height and width that the net sees, in pixels; 0: those of its published weights, 224 without.
        class_weights: balanced: a class counts in the loss as if it had as many images as the others.
        smoothing: Label smoothing: this part of each label is spread over all classes.
        augment: crop: random resized crops, mirrored or not; trivial, rand: TrivialAugment or RandAugment on top.
        mix: Mix each image with another one of its batch; either: by mixup or cutmix.
        lr: Learning rate of AdamW.
        layer_decay: The rate of what was trained before is this times lower for each layer further from the output.
        head_epochs: Train the last layer alone for so many of the epochs before all of the net (--mode finetune).
        constant: Keep the learning rate; --no-constant: it warms up, then decays to 0 on half a cosine.
        ema: Decay of a moving average of the weights, which is measured beside them and chosen from; 0: none.
        patience: Stop early after this many epochs without a better validation accuracy; 0: never, None: half of them.
        views: Augmented views of each training image in --mode frozen, where the locked part of the net is computed once.
    """
    if mode == "scratch" and (pretrained or source):
        raise Refused("--mode scratch takes no weights", 2)
    published = mode != "scratch" and not source
    if head_epochs and (mode != "finetune" or head_epochs >= epochs):
        raise Refused(f"--head-epochs is for --mode finetune, and fewer than --epochs, {epochs}; it is {head_epochs}", 2)
    if not 0 < layer_decay <= 1:
        raise Refused(f"--layer-decay must be more than 0 and at most 1, it is {layer_decay:g}", 2)
    if epochs < (2 if mode == "gradual" else 1):
        raise Refused("--epochs must be at least 1, and at least 2 for --mode gradual, which trains twice", 2)
    if views and (views < 0 or mode not in ("frozen", "gradual")):
        raise Refused(f"--views takes a number from 0 on, and is for --mode frozen and gradual; it is {views}", 2)
    rule = data.rule(size or size_for(net, mode))
    images = sources.custom(
        run.data, rule, data, run.limit, run.validation, classes=run.classes, main=run.rank == 0 and not run.quiet
    )
    zeros = mode in ("frozen", "gradual") or head_epochs > 0
    model, images = net_for(run, net, images, published, source, sha256, average, zeros)
    if mode != "frozen" and run.trains and not run.finished:  # now, and not when the last layer has been trained
        check_batches(run, model.to(run.accelerator.device), images, batch)
    run.open(images, {"mode": mode, "cache_size": rule.cache_size})
    loss = loss_for(run, images, class_weights, smoothing)
    if patience is None:
        patience = epochs // 2
    options = {"batch": batch, "augment": AUGMENTS[augment], "mix": MIXES[mix], "ema": ema, "patience": patience}
    last = heads(model, len(images.classes))
    learner, seen, first_options = model, images, options  # what is trained, or trained first, and on what
    head_first = epochs // 2 if mode == "gradual" else head_epochs  # epochs
    if mode == "frozen" or head_first:
        lock(model)
        unlock(model, *last)
        seen_once = Views(AUGMENTS[augment], augment, run.seed, views)
        learner, seen, first_options = trained_on_features(run, model, images, last, seen_once, options)
    rates = {"lr": lr, "weight_decay": weight_decay, "others": BACKBONE_LR if mode == "finetune" else 1.0, "last": last}
    rates |= {"layer_decay": layer_decay, "depths": depths(model)}
    optimizer = torch.optim.AdamW(groups(learner, **rates), lr=lr, fused=True)

    def schedule(epochs: int) -> Schedule | None:
        return None if constant else warm_up(WARM_UP * epochs, cosine((1 - WARM_UP) * epochs))

    if not head_first:
        train(run, learner, seen, optimizer, loss, epochs=epochs, schedule=schedule(epochs), **first_options)
        return
    first_options = first_options | {"epochs": head_first, "schedule": schedule(head_first), "stage": "frozen"}
    first, left = train(run, learner, seen, optimizer, loss, **first_options), epochs - head_first
    run.use_threads()
    if mode == "gradual":
        unlock(model, last_block(model, last))
        add_trainable(optimizer, model, BACKBONE_LR * lr)
    else:
        unlock(model)
        optimizer = torch.optim.AdamW(groups(model, **rates), lr=lr, fused=True)
    second = train(run, model, images, optimizer, loss, epochs=left, schedule=schedule(left), stage="unlocked", **options)
    measure = images.task.measure
    before, after = (tested(result)[measure] for result in (first, second))
    summary = f"{mode}: test {WORDS[measure]} {after:.4f}, {before:.4f} with the last layer alone"
    run.finish(summary, test=tested(second), stages=[first, second])


def size_for(name: str, mode: str) -> int:
    """The size of image, in pixels, that the published weights of the net want; 224 where there are none."""
    with suppress(ValueError, ImportError):  # said where the net is made
        return published_preprocessing(name).get("size", 224) if mode != "scratch" else 224
    return 224


def net_for(
    run: Run, name: str, images: Images, published: bool, source: str, sha256: str = "", average: bool = True, zeros: bool = False
) -> tuple[nn.Module, Images]:
    """The net with its first weights, and the images prepared as these want. Raises Refused.

    `zeros`: a new last layer starts from zeros. Random weights in it, some of timm's are large, take many steps to forget.
    """
    classes, size = len(images.classes), images.train.shape[1]
    published = published and not run.classes  # else a trained net's weights follow
    without = "--mode scratch trains without weights, --source from others"
    try:
        if published and name.startswith(TIMM):
            offline_if_unreachable()
        state = load(weights_url(name)) if published and name in names() else None
        model = build(name, classes, size, state, pretrained=published and name.startswith(TIMM))
        last = heads(model, classes)
        wants = published_preprocessing(name) if published or source else {}
    except (ValueError, ImportError) as error:
        raise Refused(f"--net: {error}" + ("; pip install timm" if isinstance(error, ImportError) else ""), 2) from error
    except Refused as error:
        raise Refused(f"--net {name}: {error}; {without}" if error.code == 1 else str(error), error.code) from error
    except Exception as error:  # timm's nets, and its downloads, raise many kinds
        if not published:
            raise Refused(f"--net {name} cannot be made for images of {size}×{size}: {first_line(error)}", 2) from error
        raise Refused(f"--net {name}: its weights cannot be downloaded ({first_line(error)}); {without}") from error
    if published and not state and not name.startswith(TIMM):
        raise Refused(f"--net {name} has no published weights: {without}", 2)
    wants = scale(model) | {key: value for key, value in wants.items() if key != "size"}
    if run.classes:
        return model, prepared(images, **wants)
    lines, known = [], 0
    if published:
        known = len(state[f"{last[0]}.weight"]) if state else model.pretrained_cfg.get("num_classes")
        lines += [f"last layer {', '.join(last)}: {kept(classes, images.classes)}"] if known == classes else []
    if zeros and (source or known != classes):  # a source's last layer is put over them
        for parameter in (parameter for layer in last for parameter in model.get_submodule(layer).parameters()):
            nn.init.zeros_(parameter)
    if source:
        trained = run.load(source, sha256, average)
        tensors, part = without_prefix(model, trained.tensors, average)
        trained = trained._replace(tensors=as_timm_has_them(model, tensors))
        tensors, last_layer = for_classes(trained, model, last, images.classes)
        report = load_into(model, tensors, partial=True)
        if strange := [name for name in report.new if name.rpartition(".")[0] not in last]:
            raise Refused(f"--source is not a {name}: it lacks {', '.join(strange[:4])}", 4)
        lines += [line for line in (*trained.notes, part, str(report), last_layer) if line]
        if trained.mean:
            wants = {"mean": trained.mean, "std": trained.std, "crop": trained.crop, "interpolation": trained.interpolation}
        if (wants["mean"], wants["std"]) != (*scale(model).values(),):
            lines += [f"images are normalised as the source's were: mean {wants['mean']}, std {wants['std']}"]
    images = prepared(images, **wants)
    rule = images.train.rule
    if (rule.crop, rule.interpolation) != (CENTER_CROP, INTERPOLATIONS[0]):
        lines += [f"images as these weights want them: {rule.crop:.3g} of the shorter side, {rule.interpolation} to {rule.size}"]
    if run.rank == 0 and lines and not run.quiet:
        say("\n".join(lines))
    return model, images


def loss_for(run: Run, images: Images, class_weights: str, smoothing: float):
    """Cross-entropy, for labels or shares of classes; with a weight for each class if it is to be balanced.

    The weights are 1 on average over the training images, and a batch's loss is the mean over its images, not over its
    weights as torch has it: so a batch's micro-batches add up to the batch. Each class in a mixed image has its own weight.
    """
    if images.multi_label:
        return several_labels_loss(run, images, class_weights, smoothing)
    plain = partial(F.cross_entropy, label_smoothing=smoothing) if smoothing else F.cross_entropy
    if class_weights == "none":
        return plain
    counts = images.train.labels.bincount(minlength=len(images.classes))
    classes = int((counts > 0).sum())  # with --limit, a class may have none
    weights = (len(images.train) / classes / counts.clamp(min=1)).to(run.accelerator.device)

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        if labels.ndim == 1:
            return (plain(logits, labels, reduction="none") * weights[labels]).mean()
        shares = labels * weights  # of a mixed image's classes, each with its own weight
        whole = shares.sum(1, keepdim=True)  # torch smooths labels that add up to 1
        return (plain(logits, shares / whole, reduction="none") * whole[:, 0]).mean()

    return loss


def several_labels_loss(run: Run, images: Images, class_weights: str, smoothing: float):
    """Binary cross-entropy of each label; if it is to be balanced, having a label counts as often as not having it."""
    if class_weights == "none":
        return partial(binary_loss, smoothing=smoothing)
    labels = images.train.labels
    there, absent = ((labels == value).sum(0) for value in (1, 0))
    return partial(binary_loss, positive=(absent / there.clamp(min=1)).to(run.accelerator.device), smoothing=smoothing)


if __name__ == "__main__":
    cli(main)
