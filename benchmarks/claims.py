"""The documents' numbers against ours: run what tests/claims.toml lists, write docs/results.md.

    make claims                             everything that has not run yet, hours on a CPU
    python benchmarks/claims.py --only 2-07 these rows
    python benchmarks/claims.py --no-run    only write the table from what has run

Runs lie under runs/claims/ and go on where they stopped. `--data` is given on to the recipes.
"""

import json
import platform
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import torch
import tyro

from launch.runs import read_metrics

ROOT = Path(__file__).parents[1]


def folder_of(command: str) -> Path:
    return ROOT / "runs" / "claims" / re.sub(r"[^\w.]+", "-", command).strip("-")


def train(command: str, data: str) -> None:
    recipe, *flags = shlex.split(command)
    script = ROOT / "recipes" / f"{recipe}.py"
    subprocess.run([sys.executable, script, *flags, "--data", data, "--out", folder_of(command)], check=True)


def value(command: str, read: list) -> float | None:
    """What metrics.jsonl of the command's run says; None where there is no finished run."""
    source, quantity, epoch = read
    folder = folder_of(command)
    if not (folder / "result.json").exists():
        return None
    lines = [line for line in read_metrics(folder / "metrics.jsonl") if line.get("split", "train") == source]
    lines = [line for line in lines if (line["event"] == "train") == (source == "train")]
    return next(line[quantity] for line in reversed(lines) if epoch in (0, line["epoch"]))


def main(only: str = "", data: str = "hub", run: bool = True) -> None:
    """only: ids to run, as a regular expression; data: as the recipes take it; run: False writes the table only."""
    claims = tomllib.loads((ROOT / "tests" / "claims.toml").read_text())["claim"]
    rows = ["| row | what | published | done right | as the book | band | |", "|---|---|---|---|---|---|---|"]
    for claim in claims:
        commands = [claim["command"], *([claim["book"]] if "book" in claim else [])]
        if run and "not_yet" not in claim and re.fullmatch(only or ".*", claim["id"]):
            for command in commands:
                train(command, data)
        ours, book = value(claim["command"], claim["read"]), value(claim.get("book", ""), claim["read"])
        low, high = claim["band"]
        judged = "" if ours is None else "reproduced" if low <= ours <= high else "**outside**"
        cells = [claim["id"], f"{claim['what']} (`{claim['command']}`)", claim.get("published", "")]
        cells += ["" if number is None else f"{number:.4f}" for number in (ours, book)]
        cells += [f"{low}–{high}", judged or claim.get("not_yet", "not run yet")]
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    finished = {claim["command"] for claim in claims if value(claim["command"], claim["read"]) is not None}
    configs = [json.loads((folder_of(command) / "config.json").read_text()) for command in finished]
    machines = sorted({f"{config['world_size']} × {config['device']}, torch {config['versions']['torch']}" for config in configs})
    head = [
        "# Results",
        "",
        "The documents' numbers that take training, against ours. Made by `make claims` from tests/claims.toml; counts, shapes,",
        "kernels and receptive fields are held by the tests. Accuracies are on the data set's test images (the book's validation",
        "set), seed 1, one run each. As the book: no shuffling but for the baseline, measured in train mode.",
        "",
        f"Run on: {'; '.join(machines) or 'nothing yet'}; {platform.machine()}, {torch.get_num_threads()} cores.",
        "",
    ]
    (ROOT / "docs").mkdir(exist_ok=True)
    (ROOT / "docs" / "results.md").write_text("\n".join([*head, *rows]) + "\n")
    print(ROOT / "docs" / "results.md")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
