"""Data sets as their publishers ship them are read rightly, or refused with the command that is right."""

import csv
import shlex

import layouts
import pytest

ALL = [*layouts.FOLDERS, *layouts.TABLES]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ONELOOP_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("layout", ALL, ids=lambda layout: layout.name)
def test_a_replica_is_read_as_its_publisher_means_it(oneloop, tmp_path, layout):
    data = layouts.write(layout, tmp_path / "data")
    if layout.name.startswith("UTF-16"):
        rows = [f"images/{n:03}.jpg\t{layouts.CD[n % 2]}" for n in range(6)]
        data.write_text("\n".join(["path\tlabel", *rows]), encoding="utf-16")
    if layout.refused:
        code, out, error = oneloop("data", data)
        assert (code, out, error.count("\n")) == (layout.code, "", 1), error
        assert layout.refused in error
        if not layout.flags:
            return
        assert " ".join(map(shlex.quote, layout.flags)).split("=")[0] in error  # what is advised is what is right
    code, out, error = oneloop("data", data, *layout.flags, "--write-split", tmp_path / "split.csv")
    assert code == 0, error
    with open(tmp_path / "split.csv", newline="") as file:
        rows = {row["path"]: (row["label"], row["split"]) for row in csv.DictReader(file)}
    truth = {path: label for path, label in layout.truth.items() if label}
    assert {path: label for path, (label, _) in rows.items()} == {path: label for path, (label, _) in truth.items()}
    if all(split for _, split in truth.values()):
        assert rows == truth
    if layout.left_out:
        assert sum(int(word) for word in counts_of(out)) >= layout.left_out, out
    assert layout.says in out, out


def counts_of(out: str) -> list[str]:
    """The numbers of images that were ignored."""
    line = next((line for line in out.splitlines() if line.startswith("ignored: ")), "")
    return [part.split()[0] for part in line.removeprefix("ignored: ").split(", ") if "images" in part]


def test_there_are_many_layouts():
    assert len({layout.name for layout in ALL}) == len(ALL) >= 70
