"""`oneloop predict` of a folder, and of one file, beside a plain PyTorch loop and another checkout.

    python benchmarks/predict.py --against CHECKOUT --photos photos/

JPEG files of 500×375 are made, as for images.py, and a net of each kind is trained for a moment. Then whole commands are timed,
each in a process of its own, in turns: start and end included, and all of their processes. The plain loop is ImageFolder, a
DataLoader with a worker for each core, batches of 64, the same net in eval and inference mode. Ratios are medians of those of a
round; "without the start" is what more images take than one. Keep the machine idle meanwhile.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from json import dumps
from pathlib import Path

import images
import torch
import tyro
from commands import Cost, cost, recipe
from image_loaders import MEAN, STD

ROOT = Path(__file__).parents[1]
COMMAND = "import sys; from launch.commands import main; sys.exit(main())"
# What is aimed at: what was measured, at whose side, in which figure, and the least ratio (memory: the largest).
TARGETS = {
    ("folder", "plain", "seconds"): 1.2,
    ("folder", "plain", "cores"): 1.2,
    ("folder", "plain", "memory"): 1.05,
    ("one", "there", "seconds"): 1.6,
    ("one", "there", "cores"): 1.6,
}


def main(
    count: int = 1000,
    rounds: int = 5,
    nets: tuple[str, ...] = ("mobilenet_v3_small", "resnet18"),
    photos: Path | None = None,
    against: Path | None = None,
    json: bool = False,
) -> None:
    """Time them.

    Args:
        count: JPEG files in the folder.
        rounds: turns of each.
        nets: torchvision's names.
        photos: a folder of photographs that the files are cut from.
        against: another checkout of oneloop.
        json: print JSON in place of a table.
    """
    result: dict = {"machine": images.speed.machine(), "torch": torch.__version__, "files": count, "rounds": rounds}
    with tempfile.TemporaryDirectory() as place:
        images.write(Path(place) / "folder", count, 500, photos)
        images.write(Path(place) / "one", 1, 500, photos)
        for net in nets:
            ways = {"ours": ours(ROOT, place, net), "plain": [sys.executable, __file__, "--plain", net]}
            ways |= {"there": ours(against, place, net)} if against else {}
            spent: dict[tuple[str, str], list[Cost]] = {}
            for number in range(rounds):
                for way in [*ways][:: -1 if number % 2 else 1]:
                    for what in ("folder", "one"):
                        environment = os.environ | {"PYTHONPATH": str(against if way == "there" else ROOT)}
                        spent.setdefault((what, way), []).append(cost([*ways[way], f"{place}/{what}"], environment))
            result[net] = figures(spent, count, [*ways][1:])
            if not json:
                show(net, result[net], count)
    print(dumps(result, indent=1) if json else "")


def ours(root: Path, place: str, net: str) -> list[str]:
    """The command of a checkout that predicts with its own run of `net`, which is trained here."""
    run = f"{place}/run of {root.resolve().name} {net}"
    flags = ["--mode", "scratch", "--net", net, "--size", "224", "--epochs", "1", "--limit", "64", "--wandb", "disabled"]
    command = [sys.executable, str(recipe(root)), "--data", f"{place}/folder", "--out", run, *flags]
    subprocess.run(command, env=os.environ | {"PYTHONPATH": str(root)}, check=True, capture_output=True)
    return [sys.executable, "-c", COMMAND, "predict", run]


def figures(spent: dict[tuple[str, str], list[Cost]], count: int, others: list[str]) -> dict:
    """Medians of each command, and the ratios of others to ours: of memory, ours to others'."""
    medians = {" ".join(key): Cost(*map(statistics.median, zip(*of, strict=True))) for key, of in spent.items()}
    ratios = {}
    for other in others:
        for name in Cost._fields:
            for what in ("folder", "one"):
                pairs = [
                    [getattr(one, name) for one in pair] for pair in zip(spent[what, "ours"], spent[what, other], strict=True)
                ]
                one = statistics.median(a / b if name == "memory" else b / a for a, b in pairs)
                ratios[f"{what}: {name}, against {other}"] = round(one, 2)
            if name != "memory":  # what the images after the first one take
                more = [getattr(medians[f"folder {way}"], name) - getattr(medians[f"one {way}"], name) for way in ("ours", other)]
                ratios[f"folder: {name} without the start, against {other}"] = round(more[1] / more[0], 2)
    rates = {name: round(count / of.seconds, 1) for name, of in medians.items() if name.startswith("folder")}
    return {"medians": {name: of._asdict() for name, of in medians.items()}, "images_per_second": rates, "ratios": ratios}


def show(net: str, result: dict, count: int) -> None:
    print(f"{net}, {count:,} files: seconds, seconds of the cores, most MiB")
    for name, of in result["medians"].items():
        print(f"  {name:<14}{of['seconds']:>8.2f}{of['cores']:>8.2f}{of['memory']:>8.0f}")
    print("  ratios: how many times ours is faster; memory: ours of theirs")
    for name, ratio in result["ratios"].items():
        aims = [aim for (what, other, figure), aim in TARGETS.items() if name == f"{what}: {figure}, against {other}"]
        aim = "".join(f"  {'met' if (ratio >= aim) != ('memory' in name) else 'missed'}: {aim:.2f}" for aim in aims)
        print(f"  {name:<50}{ratio:>6.2f}{aim}", flush=True)


def plain(name: str, folder: str) -> None:
    """The plain loop."""
    from torchvision import datasets, models, transforms

    normalise = transforms.Normalize(MEAN, STD)
    steps = [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(), normalise]
    data = datasets.ImageFolder(folder, transforms.Compose(steps))
    net = models.get_model(name, num_classes=2).eval()
    with torch.inference_mode():
        for pixels, _ in torch.utils.data.DataLoader(data, 64, num_workers=os.cpu_count() or 1):
            for row in net(pixels).softmax(1).tolist():
                print(row)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--plain"]:
        plain(*sys.argv[2:])
    else:
        tyro.cli(main, description=__doc__)
