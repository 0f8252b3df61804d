"""How images reach a net: from files or memory to batches on the device. Its modules are imported when they are asked for.

images      Images, which a recipe trains on, and its validation images
feed        Feed, how batches reach a net, and MemoryFeed, of images in memory
disk_feed   the same for images of any size, which threads read from the disk; store: decoded ones, kept
decode      how an image file is decoded; resize: the rule for size; image_file: a file as a tensor
dataset     what a source returns
order       the order of the samples, micro-batches, random numbers, folds and validation, as functions of the random seed
augment     augmentations (a new one is a function); augment_ops: those of TrivialAugment and RandAugment; mix: mixup and cutmix
"""

from typing import TYPE_CHECKING

from ..lazy import lazily

if TYPE_CHECKING:
    from .augment import (
        Augment,
        EpochRng,
        Kind,
        Rng,
        alternating_flip,
        crop_and_flip,
        mirror,
        random_erasing,
        random_resized_crop,
        translate,
    )
    from .augment_ops import rand_augment, trivial_augment
    from .dataset import Split
    from .disk_feed import DiskFeed, DiskSplit
    from .feed import Feed, MemoryFeed, resized
    from .images import Images, with_validation
    from .mix import Mix, cutmix, either, mixed, mixup
    from .order import folds, micro_batch_bounds, micro_batch_seed, random_integers, with_neighbour

__all__ = [
    "Augment",
    "DiskFeed",
    "DiskSplit",
    "EpochRng",
    "Feed",
    "Images",
    "Kind",
    "MemoryFeed",
    "Mix",
    "Rng",
    "Split",
    "alternating_flip",
    "crop_and_flip",
    "cutmix",
    "either",
    "folds",
    "micro_batch_bounds",
    "micro_batch_seed",
    "mirror",
    "mixed",
    "mixup",
    "rand_augment",
    "random_erasing",
    "random_integers",
    "random_resized_crop",
    "resized",
    "translate",
    "trivial_augment",
    "with_neighbour",
    "with_validation",
]  # fmt: skip
__getattr__ = lazily(__name__, {  # image files are decoded without torch
    "augment": "Augment EpochRng Kind Rng alternating_flip crop_and_flip mirror random_erasing random_resized_crop translate",
    "augment_ops": "rand_augment trivial_augment",
    "dataset": "Split",
    "disk_feed": "DiskFeed DiskSplit",
    "feed": "Feed MemoryFeed resized",
    "images": "Images with_validation",
    "mix": "Mix cutmix either mixed mixup",
    "order": "folds micro_batch_bounds micro_batch_seed random_integers with_neighbour",
})  # fmt: skip
