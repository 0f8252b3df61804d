"""`oneloop sweep --search` against a full grid of at least its cost: `python benchmarks/search.py`, for docs/compare.md.

Net of recipes/cifar2.py on 1,500 images (500 of them choose), learning rate from 0.001 to 1 and batch from 16 to 256, five seeds.
The search: 27 configurations; 2, 6 and 18 epochs; 126 epochs in all. The grid: 8 configurations, 18 epochs, 144 in all. All runs
train in this process, one after the other, in the current folder: a quarter of an hour. Prints a row for each seed.
"""

import contextlib
import io
import sys
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from launch import cli  # noqa: E402
from launch.commands import main, sweep  # noqa: E402
from launch.recipe import load  # noqa: E402
from launch.report.runs import read, read_metrics, read_result  # noqa: E402

RECIPE = ROOT / "recipes/cifar2.py"
DATA = sys.argv[1] if len(sys.argv) > 1 else "hub"
COMMON = ("--data", DATA, *"--limit 1500 --validation 0.3334 --threads 1 --track none".split())
RANGES = ("--search", "27", "--epochs", "2..18", "--lr", "1e-3..1", "--batch", "16..256")
GRID = ("--epochs", "18", "--lr", "0.001", "0.01", "0.1", "1", "--batch", "32", "128")


def run_here(_chosen, cells, *_) -> dict:
    """As sweep._run, in this process."""
    recipe = load(RECIPE)
    for cell in cells:
        if not cell.result():
            with patch.object(sys, "argv", [str(RECIPE), *cell.flags]), contextlib.redirect_stdout(io.StringIO()):
                cli(recipe.main)
    return {}


def measured(words: tuple[str, ...], seed: int) -> tuple[dict, int, str]:
    """Result of the best run of a sweep with `words`, the number of its runs, and the best one's flags."""
    before = {path.parent for path in Path().glob("runs/cifar2/*/result.json")}
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = main(["sweep", str(RECIPE), *COMMON, *words, "--seed", str(seed)])
    assert not code, out.getvalue()
    folders = {path.parent for path in Path().glob("runs/cifar2/*/result.json")} - before
    results = {folder: read_result(folder) for folder in folders}
    best = max(results, key=lambda folder: (results[folder]["epochs"] == 18, results[folder]["best"]["accuracy"], -loss(folder)))
    options = read(best).options
    return results[best], len(folders), f"--lr {options['lr']} --batch {options['batch']}"


def loss(folder: Path) -> float:
    return [event["loss"] for event in read_metrics(folder / "metrics.jsonl") if event.get("split") == "validation"][-1]


if __name__ == "__main__":
    for seed in range(1, 6):
        with patch.object(sweep, "_run", run_here), patch("launch.report.show.show"), patch("launch.commands.compare.draw"):
            row = []
            for name, words in (("search", RANGES), ("grid", GRID)):
                result, count, where = measured(words, seed)
                best = result["best"]
                row.append(
                    f"{name}: {count} runs, validation {best['accuracy']:.4f}, test {best['test']['accuracy']:.4f} {where}"
                )
        print(f"seed {seed}: {'; '.join(row)}", flush=True)
