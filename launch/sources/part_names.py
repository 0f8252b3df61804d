"""What the parts of a split are called: train2017, seg_train, TrainImages, test_set, dev, holdout."""

import re

PARTS = {
    "train": "train", "training": "train", "trn": "train", "trainval": "train",
    "val": "validation", "valid": "validation", "validation": "validation", "dev": "validation",
    "test": "test", "testing": "test", "tst": "test", "eval": "test", "evaluation": "test", "holdout": "test",
    "pred": "no labels", "predict": "no labels", "unlabeled": "no labels", "unlabelled": "no labels",
}  # fmt: skip
CLASSES_TOO = ("train", "valid", "unlabeled", "unlabelled")  # among other classes: vehicles, valid and invalid tickets
KINDS = "set|sets|data|dataset|image|images|img|imgs|pic|pics|picture|pictures|photo|photos|split|folder|dir|part|files?"
PART = re.compile(rf"({'|'.join(PARTS)})({KINDS})?")
IMAGES = re.compile("(jpeg)?(images?|imgs?|pictures?|photos?|jpe?g)")  # what people call a folder of all images, without classes

MASKS = re.compile("(images?)?(masks?|annotations?|labels?|segmentations?(class|object)?|trimaps?|groundtruths?|gt)")


def part_of(name: str) -> tuple[str, tuple[str, ...]]:
    """Which part of a split is called like that, "" if none; and what else the name says."""
    words = re.findall("[a-z]+", re.sub("([a-z])([A-Z])", r"\1 \2", name).casefold())
    if whole := PART.fullmatch("".join(words)):
        return PARTS[whole[1]], ()
    parts = [PARTS[part[1]] for word in words if (part := PART.fullmatch(word))]
    others = [word for word in words if len(word) > 1 and not PART.fullmatch(word) and not re.fullmatch(KINDS, word)]
    return parts[0] if parts else "", tuple(others)


def letters(name: str) -> str:
    """The letters from a to z alone, for a look at what a folder is called."""
    return re.sub("[^a-z]", "", name.casefold())


def is_images(name: str) -> bool:
    """Whether a folder is called like one of all images, as images or JPEGImages."""
    return IMAGES.fullmatch(letters(name)) is not None


def is_masks(name: str) -> bool:
    """Whether a folder is called like one of what is drawn on images, as masks or annotations."""
    return MASKS.fullmatch(letters(name)) is not None
