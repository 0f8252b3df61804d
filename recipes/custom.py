"""Your own photographs: any folder or table, any classes, any sizes, from scratch or from weights trained elsewhere.

Source  transfer notes, sections 2.2 to 2.4: photographs of 224 × 224, transfer learning, which net for which data. Its settings
        are for other data; AdamW, warm-up and cosine decay, random resized crops, TrivialAugment and an average of the weights
        are today's usual ones (docs/training.md)
Data    --data: a folder with a folder for each class, split into train/, val/ and test/ or not; a CSV or parquet table; a data
        set of the Hugging Face hub (owner/name). docs/custom.md says what is found, `oneloop data PATH` shows it
Expect  depends on the images; docs/custom.md has a whole walk
Run     accelerate launch recipes/custom.py --data synthetic --size 32 --epochs 5
        accelerate launch recipes/custom.py --data photos/ --net resnet18 --size 128
        accelerate launch recipes/custom.py --data photos/ --net resnet50 --pretrained --mode finetune
        accelerate launch recipes/custom.py --data table.csv --mode gradual --source runs/custom/resnet18-0a1b2c3d
        accelerate launch --config_file launch/gpus.yaml recipes/custom.py --data photos/ --net timm/convnext_tiny --size 224

scratch trains from random weights. finetune starts from others and trains all of them, those at a tenth of the rate of the new
last layer. frozen trains the last layer only. gradual does the same for half of the epochs, then unlocks the last block.

Where the images are not split, 10 % of each class validate (--validation) and 10 % test (--test). Validation images choose
the best weights; the test images are measured at the end only. With --validation 0 none validate, and the test images choose.
"""

from dataclasses import replace
from functools import partial
from typing import Literal

from launch import Run, cli, sources, train
from launch.console import say
from launch.data import Images, cutmix, either, mixup, rand_augment, random_resized_crop, trivial_augment
from launch.errors import Refused, first_line
from launch.features.compute import Views
from launch.features.head import trained_on_features
from launch.report.runs import tested
from launch.run import OwnRun
from launch.sources.options import DataOptions
from launch.training.optimizers import groups
from launch.training.schedules import Schedule, cosine, warm_up
from launch.weights import for_classes, kept, load, load_into
from nets.named import TIMM, build, heads, last_block, scale
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
    mode: Literal["scratch", "finetune", "frozen", "gradual"] = "scratch",
    pretrained: bool = False,
    source: str = "",
    sha256: str = "",
    size: int = 224,
    class_weights: Literal["none", "balanced"] = "none",
    smoothing: float = 0.0,
    augment: Literal[tuple(AUGMENTS)] = "trivial",
    mix: Literal[tuple(MIXES)] = "none",
    epochs: int = 30,
    batch: int = 32,
    lr: float = 1e-3,
    weight_decay: float = 0.05,
    constant: bool = False,
    ema: float = 0.99,
    patience: int | None = None,
    views: int = 0,
):
    """Train on images of your own.

    Args:
        net: A net by torchvision's name, one of the package's own (Net, MyNet1, CifarResNet …), or timm/NAME.
        mode: What is trained, and from which weights.
        pretrained: Start from the published weights of torchvision or timm.
        source: Start from these weights: a .safetensors file, a state dict saved by torch, a URL or a run folder.
        sha256: Expected sha256 of a source at a URL.
        size: Height and width that the net sees, in pixels.
        class_weights: balanced: a class counts in the loss as if it had as many images as the others.
        smoothing: Label smoothing: this part of each label is spread over all classes.
        augment: crop: random resized crops, mirrored or not; trivial, rand: TrivialAugment or RandAugment on top.
        mix: Mix each image with another one of its batch; either: by mixup or cutmix.
        lr: Learning rate of AdamW.
        constant: Keep the learning rate; else it warms up, then falls to 0 on half a cosine.
        ema: Decay of a moving average of the weights, which is measured beside them and chosen from; 0: none.
        patience: Stop early after this many epochs without a better validation accuracy; 0: never, None: half of them.
        views: Augmented views of each training image in --mode frozen, where the locked part of the net is computed once.
    """
    if (mode == "scratch") == (pretrained or bool(source)):
        wants = "takes no weights" if mode == "scratch" else "needs weights to start from: --pretrained or --source"
        raise Refused(f"--mode {mode} {wants}", 2)
    if epochs < (2 if mode == "gradual" else 1):
        raise Refused("--epochs must be at least 1, and at least 2 for --mode gradual, which trains twice", 2)
    if views and (views < 0 or mode not in ("frozen", "gradual")):
        raise Refused(f"--views takes a number from 0 on, and is for --mode frozen and gradual; it is {views}", 2)
    rule = data.rule(size)
    images = sources.custom(run.data, rule, data, run.limit, run.validation, classes=run.classes, main=run.rank == 0)
    model, images = net_for(run, net, images, pretrained, source, sha256, zeros=mode in ("frozen", "gradual"))
    run.open(images, {"mode": mode, "cache_size": rule.cache_size})
    loss = loss_for(run, images, class_weights, smoothing)
    if patience is None:
        patience = epochs // 2
    options = {"batch": batch, "augment": AUGMENTS[augment], "mix": MIXES[mix], "ema": ema, "patience": patience}
    last = heads(model, len(images.classes))
    learner, seen, first_options = model, images, options  # what is trained, or trained first, and on what
    if mode in ("frozen", "gradual"):
        lock(model)
        unlock(model, *last)
        seen_once = Views(AUGMENTS[augment], augment, run.seed, views)
        learner, seen, first_options = trained_on_features(run, model, images, last, seen_once, options)
    others = BACKBONE_LR if mode == "finetune" else 1.0
    optimizer = torch.optim.AdamW(groups(learner, lr, weight_decay, others, last), lr=lr, fused=True)

    def schedule(epochs: int) -> Schedule | None:
        return None if constant else warm_up(WARM_UP * epochs, cosine((1 - WARM_UP) * epochs))

    if mode != "gradual":
        train(run, learner, seen, optimizer, loss, epochs=epochs, schedule=schedule(epochs), **first_options)
        return
    half, left = epochs // 2, epochs - epochs // 2
    first = train(run, learner, seen, optimizer, loss, epochs=half, schedule=schedule(half), stage="frozen", **first_options)
    run.use_threads()
    unlock(model, last_block(model, last))
    add_trainable(optimizer, model, BACKBONE_LR * lr)
    second = train(run, model, images, optimizer, loss, epochs=left, schedule=schedule(left), stage="unlocked", **options)
    before, after = (tested(result)["accuracy"] for result in (first, second))
    summary = f"gradual: test accuracy {after:.4f}, {before:.4f} before the last block was unlocked"
    run.finish(summary, test=tested(second), stages=[first, second])


def net_for(
    run: Run, name: str, images: Images, pretrained: bool, source: str, sha256: str, zeros: bool = False
) -> tuple[nn.Module, Images]:
    """The net with its first weights, and the images normalised as these want. Raises Refused.

    `zeros`: a new last layer starts from zeros. Random weights in it, some of timm's are large, take many steps to forget.
    """
    classes, size = len(images.classes), images.train.shape[1]
    wanted = pretrained and not run.classes  # else a trained net's weights follow
    try:
        state = load(weights_url(name)) if wanted and name in names() else None
        model = build(name, classes, size, state, pretrained=wanted and name.startswith(TIMM))
        last = heads(model, classes)
    except (ValueError, ImportError) as error:
        raise Refused(f"--net: {error}" + ("; pip install timm" if isinstance(error, ImportError) else ""), 2) from error
    except Refused:
        raise
    except Exception as error:  # timm's nets, and its downloads, raise many kinds
        if not wanted:
            raise Refused(f"--net {name} cannot be made for images of {size}×{size}: {first_line(error)}", 2) from error
        raise Refused(
            f"--net {name}: its weights cannot be had ({first_line(error)}); leave out --pretrained or use --source"
        ) from error
    usual = scale(model)
    if run.classes:
        return model, replace(images, **usual)
    lines, published = [], 0
    if wanted:
        published = len(state[f"{last[0]}.weight"]) if state else model.pretrained_cfg.get("num_classes")
        lines += [f"last layer {', '.join(last)}: {kept(classes, images.classes)}"] if published == classes else []
    if zeros and (source or published != classes):  # a source's last layer is put over them
        for parameter in (parameter for layer in last for parameter in model.get_submodule(layer).parameters()):
            nn.init.zeros_(parameter)
    if source:
        trained = run.load(source, sha256)
        tensors, last_layer = for_classes(trained, model, last, images.classes)
        report = load_into(model, tensors, partial=True)
        if strange := [name for name in report.new if name.rpartition(".")[0] not in last]:
            raise Refused(f"--source is not a {name}: it lacks {', '.join(strange[:4])}", 4)
        lines += [str(report), *filter(None, [last_layer])]
        its = {"mean": trained.mean or usual["mean"], "std": trained.std or usual["std"]}
        if its != usual:
            lines += [f"images are normalised as the source's were: mean {its['mean']}, std {its['std']}"]
        usual = its
    if run.rank == 0 and lines:
        say("\n".join(lines))
    return model, replace(images, **usual)


def loss_for(run: Run, images: Images, class_weights: str, smoothing: float):
    """Cross-entropy, for labels or shares of classes; with a weight for each class if it is to be balanced.

    The weights are 1 on average over the training images, and a batch's loss is the mean over its images, not over its
    weights as torch has it: so a batch's micro-batches add up to the batch. Each class in a mixed image has its own weight.
    """
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


if __name__ == "__main__":
    cli(main)
