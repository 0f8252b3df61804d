"""How images of your own are found, split and kept: the flags that the commands with --data share."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from typing_extensions import Doc

from ..errors import Refused
from .columns import told
from .listing import Reading
from .several import rules

if TYPE_CHECKING:
    from ..data.resize import ResizeRule

MOST_FOLDS = 100
FRACTION = 0.1  # of images that are not split: for validation, and for the test


@dataclass(frozen=True)
class DataOptions:
    """Images of your own: how they are found, split and kept."""

    split: Annotated[
        str, Doc("A table with the columns path and split, such as the split.csv of a run; used instead of theirs.")
    ] = ""
    relabel: Annotated[
        str, Doc("A table with the columns path and label, such as --write-labels of oneloop data makes: labels to correct.")
    ] = ""
    test: Annotated[float, Doc("Fraction of the images to test on, where they are not split.")] = FRACTION
    columns: Annotated[
        tuple[str, ...], Doc("Columns of a table that are not to be guessed: image=NAME, label=NAME, split=NAME.")
    ] = ()
    split_column: Annotated[str, Doc("The table's column of splits; none: its column is not used.")] = ""
    group: Annotated[str, Doc("A table's column of what stays on one side of the split, such as the patient.")] = ""
    label_from: Annotated[str, Doc("The class is the first group of this expression in a file's name, as ^(.+)_[0-9]+$.")] = ""
    classes_at: Annotated[int, Doc("The class is the folder at this depth, from 1; 0: it is found.")] = 0
    multi_label: Annotated[
        str, Doc("yes: an image has any number of labels; no: one. Without it, as the table is read without doubt.")
    ] = ""
    uncertain: Annotated[str, Doc("Labels that are -1, uncertain: ignore leaves them out, 0 and 1 take them as such.")] = ""
    skip_bad: Annotated[bool, Doc("Leave out the files that cannot be decoded.")] = False
    fold: Annotated[
        str, Doc("I/K: of K parts of the training and validation images, made by content, test on the I-th, train on the others.")
    ] = ""
    cache_size: Annotated[int, Doc("Shorter side of the images as they are kept, in pixels; 0: twice the size.")] = 0
    white: Annotated[
        int, Doc("Pixel value of 16-bit grey images that is white, such as 4095 for 12 bits; 0: by the highest of all.")
    ] = 0
    bands: Annotated[
        tuple[int, ...], Doc("Three bands of TIFF files to take as red, green and blue, from 1 on, such as 4 3 2.")
    ] = ()
    open_white: ClassVar = -1  # data.resize.OF_DATA: what a rule has where `white` is 0
    # Than version 0.2, see option_groups.py.
    LATER: ClassVar = (
        "relabel", "split_column", "group", "label_from", "classes_at", "bands", "fold", "multi_label", "uncertain",
    )  # fmt: skip

    def checked(self) -> "DataOptions":
        """Themselves. Raises Refused (2)."""
        self.fold_of()
        if not 0 <= self.white <= 65535:
            raise Refused(f"--white must be from 0 to 65535, it is {self.white}", 2)
        if self.bands and (len(self.bands) != 3 or min(self.bands) < 1):
            raise Refused(f"--bands takes three numbers from 1 on, it is {' '.join(map(str, self.bands))}", 2)
        return self

    def fold_of(self) -> tuple[int, int] | None:
        """The number of the fold to test on, from 1, and that of all folds; None without folds. Raises Refused (2)."""
        if not self.fold:
            return None
        number, of, count = self.fold.partition("/")
        if not (
            of and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count) <= MOST_FOLDS and int(count) > 1
        ):
            raise Refused(f"--fold takes I/K, as 1/5: fold I, from 1, of K, from 2 to {MOST_FOLDS}; it is {self.fold}", 2)
        return int(number), int(count)

    def reading(self, known: Collection[str] = ()) -> Reading:
        """How to read what is there; `known` classes, those of a trained net, need not be doubted. Raises Refused (2)."""
        columns, told_labels = told(self.columns, self.split_column, self.group), rules(self.multi_label, self.uncertain)
        return Reading(columns, self.label_from, self.classes_at, self.relabel, told_labels, known, self.bands)

    def rule(self, size: int) -> "ResizeRule":
        """The rule for nets that see `size` × `size` pixels. Raises Refused (2)."""
        from ..data.resize import rule_for  # Pillow, which no help screen needs

        self.checked()
        rule = rule_for(size, self.cache_size, self.white or self.open_white, self.bands)
        if not 0 < size <= rule.cache_size:
            raise Refused(f"--size must be at least 1 and --cache-size at least --size, they are {size} and {rule.cache_size}", 2)
        return rule


@dataclass(frozen=True)
class RecordedOptions(DataOptions):
    """Those of a run that is there already: `white` is what it saw, which in runs from before 0.3 was 65,535 if nobody said."""

    open_white: ClassVar = 0


def as_recorded(options: dict[str, Any], white: int | None) -> dict[str, Any]:
    """The `options` of a recipe for a run that has recorded `white`; as they are for a new one (None)."""
    return (
        options
        if white is None
        else {
            name: RecordedOptions(**vars(value) | {"white": white}) if isinstance(value, DataOptions) else value
            for name, value in options.items()
        }
    )
