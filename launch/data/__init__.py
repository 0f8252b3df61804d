"""The data: from a source to batches on the device.

sources     what a recipe calls: cifar10, mnist, fashion_mnist; where `--data` chooses a source (a new one is a file and a line)
            hub, folder, idx, npz, synthetic: a source each, which returns a DataSet (dataset)
            table: what `datasets` reads; picture: how an image file is decoded; cache: decoded images on disk
images      Images, which a recipe trains on, its validation images, and Feed, which makes batches of them
pictures    the same for pictures of any size, which threads read from the disk: PictureSplit, PictureFeed
order       the order of the samples, slices, random draws, folds and validation, as functions of the random seed
augment     augmentations (a new one is a function); operations: those of TrivialAugment and RandAugment
mix         mixup and cutmix
"""

from . import sources
from .augment import (
    Augment,
    Draw,
    EpochDraws,
    alternating_flip,
    crop_and_flip,
    mirror,
    random_erasing,
    random_resized_crop,
    translate,
)
from .dataset import Split
from .images import Feed, Images, feed_of, resized, with_validation
from .mix import Mix, cutmix, either, mixed, mixup
from .operations import rand_augment, trivial_augment
from .order import bounds, draws, folds, order, part, slice_seed
from .pictures import PictureFeed, PictureSplit

__all__ = [
    "Augment", "Draw", "EpochDraws", "Feed", "Images", "Mix", "PictureFeed", "PictureSplit", "Split", "alternating_flip",
    "bounds", "crop_and_flip", "cutmix", "draws", "either", "feed_of", "folds", "mirror", "mixed", "mixup", "order", "part",
    "rand_augment", "random_erasing", "random_resized_crop", "resized", "slice_seed", "sources", "translate",
    "trivial_augment", "with_validation",
]  # fmt: skip
