"""Published numbers against ours: run what tests/claims.toml lists as trained, write docs/results.md.

    make claims                             everything that has not run yet; hours on a CPU
    python benchmarks/claims.py --only 2-07 these rows of tests/claims.toml only
    python benchmarks/claims.py --no-run    only write the tables, from finished runs

Runs are in runs/claims/ and resume where they stopped. `--data` is passed to the recipes.
"""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import tyro

from launch.report.compare import train_loss
from launch.report.runs import Record, read

ROOT = Path(__file__).parents[1]
SOURCES = ("*DLwPT ch. 8*", "*transfer notes*", "*MNIST notes*", "*NiN notes*", "*Inception notes*")  # by a row's first digit


def sources(rows: str) -> str:
    """Names of the sources of rows such as "0-02, 4-01"."""
    return ", ".join(SOURCES[int(digit)] for digit in sorted(set(re.findall(r"\b([0-4])-\d\d", rows))))


def folder_of(command: str) -> Path:
    words = re.sub(r"https://\S+/", "", command)  # of a URL, the file's name
    return Path("runs") / "claims" / re.sub(r"[^\w.]+", "-", words).strip("-")


def train(command: str, data: str, precision: str) -> None:
    recipe, *flags = shlex.split(command)
    environment = os.environ | {"ACCELERATE_MIXED_PRECISION": precision}
    command_line = [sys.executable, f"recipes/{recipe}.py", *flags, "--data", data, "--out", str(folder_of(command))]
    subprocess.run(command_line, check=True, cwd=ROOT, env=environment)


def finished(command: str) -> Record | None:
    folder = ROOT / folder_of(command)
    record = read(folder) if (folder / "config.json").exists() else None
    return record if record and record.result else None


def value(record: Record | None, split: str, quantity: str, epoch: int) -> float | None:
    """A number that a run recorded: the training loss of an epoch, or a measure of a split after it (0: of the result)."""
    if record is None:
        return None
    if epoch == 0:
        return record.result[split][quantity]
    if (split, quantity) == ("train", "loss"):
        return train_loss(record.metrics())[epoch]
    return next(line[quantity] for line in record.metrics() if line["epoch"] == epoch and line.get("split") == split)


def rows_of(claim: dict) -> list[str]:
    right, book = finished(claim["command"]), finished(claim["book"]) if "book" in claim else None
    rows = []
    for index, (split, quantity, epoch, published, low, high) in enumerate(claim["numbers"]):
        ours, as_book = value(right, split, quantity, epoch), value(book, split, quantity, epoch)
        judged = as_book if "book" in claim else ours
        inside = "reproduced" if published else "inside"
        verdict = "not run yet" if judged is None else inside if low <= round(judged, 4) <= high else "**outside**"
        command = f"`{claim['command']}`" if index == 0 else ""
        number = f"{'training' if split == 'train' else 'test'} {quantity}" + (f", epoch {epoch}" if epoch else "")
        numbers = [f"{published:g}" if published else "", *("" if n is None else f"{n:.4f}" for n in (as_book, ours))]
        head = [sources(claim["id"]), claim["what"]] if index == 0 else ["", ""]
        rows.append("| " + " | ".join([*head, number, *numbers, f"{low:g}–{high:g}", verdict, command]) + " |")
    return rows


def main(only: str = "", data: str = "hub", run: bool = True) -> None:
    """only: regular expression of row ids to run; data: the recipes' --data; run: False only writes the tables."""
    claims = tomllib.loads((ROOT / "tests" / "claims.toml").read_text())
    for claim in claims["trained"]:
        if run and re.fullmatch(only or ".*", claim["id"]):
            for command in (claim["command"], claim.get("book")):
                if command:
                    train(command, data, claim.get("precision", "no"))
    records = [record for claim in claims["trained"] if (record := finished(claim["command"]))]
    machines = sorted(
        {
            f"{config['world_size']} × {config['device']}, precision {config['precision']}, torch {config['versions']['torch']}"
            for config in (record.config for record in records)
        }
    )
    text = f"""# Results

Numbers of chapter 8 of *Deep Learning with PyTorch* (*DLwPT ch. 8*) and of four sets of lecture notes, beside ours: *transfer
notes* (architectures, transfer learning), *MNIST notes*, *NiN notes* (Network in Network), *Inception notes* (Inception and
residual nets). Written by `make claims` from tests/claims.toml.

## Trained

Accuracies are on the test images (the chapter's validation set); one run each, seed 1. "Trained as published" trains and measures
as the chapter's notebook did (`--book`): no shuffling but for the baseline, accuracies in train mode. Where that column has a
number, it is the one compared with the band. Run on: {"; ".join(machines) or "nothing yet"}.

| source | what | number | published | trained as published | done right | band | verdict | command |
|---|---|---|---|---|---|---|---|---|
{chr(10).join(row for claim in claims["trained"] for row in rows_of(claim))}

## Not measured yet

| source | what | why |
|---|---|---|
{chr(10).join(f"| {sources(claim['id'])} | {claim['what']} | {claim['why']} |" for claim in claims["not_yet"])}

## Checked by the tests

| source | what | tests |
|---|---|---|
{chr(10).join(f"| {sources(claim['id'])} | {claim['what']} | {', '.join(claim['by'])} |" for claim in claims["held"])}
"""
    (ROOT / "docs").mkdir(exist_ok=True)
    (ROOT / "docs" / "results.md").write_text(text)
    print(ROOT / "docs" / "results.md")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
