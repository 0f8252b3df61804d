"""Files that a table or list names in another way: by a name without suffix or folder, by a path of another machine."""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..errors import Refused
from .folder import Entry, is_image, walk
from .labels import shown
from .listing import ListedImage
from .part_names import part_of

UPLOAD = re.compile("^[0-9a-f]{8}-")  # what Label Studio puts before the name of an upload
NAMED = 3  # files in a message
TRIED = 100  # paths, before all are looked up


class Finder:
    """The images below `root`, `entries` by name, to be found by the ends of their paths."""

    def __init__(self, root: Path, images: Iterable[Entry] | None = None, above: bool = False):
        """`images` are those of `root` (None: to be found), or of the folder `above` it."""
        images = walk(root) if images is None else images
        self.entries = {os.path.join("..", entry.name) if above else entry.name: entry for entry in images if is_image(entry)}
        self._by_last: dict[str, list[str]] | None = None

    def listed(self, name: str, label: str, split: str) -> ListedImage:
        """The image called `name`, which is one of `entries` or missing."""
        entry = self.entries.get(name)
        return ListedImage(name, label, split, entry.size if entry else 0, entry.time if entry else 0)

    def try_most(self, paths: Sequence[str]) -> list[str]:
        """The name of each of `paths`; empty if half of them are not there, or one could be several. Never raises."""
        if not any(self.candidates(split_path(path), 0, whole=False) for path in paths[:TRIED]):
            return []
        try:
            names = self.find(paths, "")
        except Refused:
            return []
        return names if 2 * sum(name in self.entries for name in names) > len(names) else []

    def find(self, paths: Sequence[str], where: str) -> list[str]:
        """The name of each of `paths`, as it is if it is not there.

        All lose the same number of folders at their start, as few as possible. Raises Refused (4) for one that could be several
        files, naming it and its row in `where`.
        """
        parts = [split_path(path) for path in paths]
        most = max(map(len, parts), default=0)
        for lost in range(most):
            matches = [self.candidates(names, lost, whole=True) for names in parts]
            if any(matches):
                break
        else:
            return [*paths]
        names = []
        for number, (path, candidates) in enumerate(zip(paths, matches, strict=True), 1):
            if len(candidates) > 1 and (own := part_of(os.path.splitext(os.path.basename(where))[0])[0]):  # of train.csv, train/
                candidates = [name for name in candidates if part_of(name.split(os.sep)[0])[0] == own] or candidates
            if len(candidates) > 1:
                several = " and ".join(map(shown, candidates[:NAMED]))
                raise Refused(f"{where}: row {number} names {shown(path)!r}, which could be {several}; write more of the path", 4)
            names.append(candidates[0] if candidates else path)
        return names

    def candidates(self, parts: Sequence[str], lost: int, whole: bool) -> list[str]:
        """The images whose paths end with `parts` without the first `lost`; all of the path if it can be (`whole`)."""
        if self._by_last is None:
            index = defaultdict[str, list[str]](list)
            for name, entry in self.entries.items():
                index[entry.parts[-1]].append(name)
                index[os.path.splitext(entry.parts[-1])[0]].append(name)
            self._by_last = {**index}
        parts = parts[lost:] if whole else parts[-1:]
        if not parts:
            return []
        last = self._by_last.get(parts[-1]) or self._by_last.get(UPLOAD.sub("", parts[-1])) or []
        ends = [*parts[:-1]]
        fit = [name for name in last if not ends or self.entries[name].parts[-1 - len(ends) : -1] == ends]
        return [name for name in fit if len(self.entries[name].parts) == len(parts)] or fit


def split_path(path: str) -> list[str]:
    """The parts of a path as any system or Label Studio writes it."""
    path = path.strip()
    if "?d=" in path:
        path = path.partition("?d=")[2]
    path = re.sub(r"^[a-z]+://", "", path, flags=re.IGNORECASE).replace("\\", "/")
    return [part for part in path.split("/") if part not in ("", ".", "..") and not re.fullmatch("[A-Za-z]:", part)]
