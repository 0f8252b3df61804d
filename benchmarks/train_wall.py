"""From a folder of photographs to a trained ResNet-18, as commands: ours beside timm's train.py and a plain loop.

    python benchmarks/train_wall.py --photos photos/ --timm TRAIN.PY --against CHECKOUT

1,000 distinct JPEG files of 500x375, 800 to train and 200 to evaluate after each of two epochs, in batches of 32 at 128 pixels:
random resized crops, mirrored or not, AdamW, no pretrained weights, two workers. Each way is a process of its own, in turns;
ratios of times are medians over the rounds. timm is installed, its train.py comes from its repository.

    new         recipes/custom.py, nothing known of the files
    known       the same again: the files are examined and stored
    timm        train.py, as it is and with --channels-last
    plain       torchvision's ImageFolder and DataLoader, and the ten lines of a loop; its memory is the yardstick
"""

import os
import shutil
import statistics
import sys
import tempfile
from json import dumps
from pathlib import Path

import image_loaders
import images
import tyro
from commands import Cost, cost, recipe

SIZE, BATCH, EPOCHS = 128, 32, 2
OURS = ("new", "known")
WALL, MEMORY = 1.12, 1.05  # aimed at: so many times as fast as timm at least, so much of the plain loop's memory at most
RECIPE = f"--net resnet18 --mode scratch --size {SIZE} --epochs {EPOCHS} --batch {BATCH} --lr 1e-3 --fresh"
TIMM = (
    f"--model resnet18 --num-classes 2 --img-size {SIZE} --epochs {EPOCHS} -b {BATCH} --train-split train --val-split val -j 2 "
    "--opt adamw --lr 1e-3 --weight-decay 0.05 --warmup-epochs 0 --smoothing 0 --color-jitter 0 --train-interpolation bilinear "
    "--device cpu"
)


def main(
    count: int = 1000,
    rounds: int = 3,
    photos: Path | None = None,
    timm: Path | None = None,
    against: Path | None = None,
    json: bool = False,
) -> None:
    """Run the ways.

    Args:
        count: JPEG files, a fifth of them to evaluate.
        rounds: turns of each way.
        photos: a folder of photographs that the files are cut from.
        timm: the train.py of timm's repository.
        against: another checkout of oneloop, run in the same turns.
        json: print JSON in place of a table.
    """
    costs: dict[str, list[Cost]] = {}
    with tempfile.TemporaryDirectory() as root:
        write(Path(root), count, photos)
        ways = {}
        for where, checkout in {"": Path(__file__).parents[1], " there": against}.items():
            if checkout:
                command = f"{recipe(checkout)} --data {root}/set --out {root}/run {RECIPE}".split()
                ways |= {f"{way}{where}": command for way in OURS}
        if timm:
            ways["timm"] = f"{timm.resolve()} --data-dir {root}/set --output {root}/timm {TIMM}".split()
            ways["timm, channels last"] = [*ways["timm"], "--channels-last"]
        ways["plain"] = f"{Path(__file__).resolve()} --worker {root}/set".split()
        for _ in range(rounds):
            for way, command in ways.items():
                costs.setdefault(way, []).append(run(way, command, Path(root)))
    medians = {way: Cost(*map(statistics.median, zip(*of, strict=True))) for way, of in costs.items()}
    pairs = [(way, other) for way in OURS for other in costs if other not in OURS]
    wall = {(a, b): statistics.median(y.seconds / x.seconds for x, y in zip(costs[a], costs[b], strict=True)) for a, b in pairs}
    memory = {way: medians[way].memory / medians["plain"].memory for way in costs}
    if json:
        of_time = {f"{way} against {other}": ratio for (way, other), ratio in wall.items()}
        print(dumps({"ways": {way: of._asdict() for way, of in medians.items()}, "wall": of_time, "memory": memory}, indent=1))
        return
    print(f"{count:,} files, {rounds} rounds: seconds, seconds of all cores, most MiB of the main process, and against plain")
    for way, of in medians.items():
        aim = reached(memory[way] <= MEMORY, f"{MEMORY} at most") if way in OURS else ""
        print(f"  {way:<20}{of.seconds:>8.1f}{of.cores:>8.1f}{of.memory:>8,.0f}{memory[way]:>8.2f}{aim}")
    for (way, other), ratio in wall.items():
        print(
            f"  {way} is {ratio:.2f} x as fast as {other}{reached(ratio >= WALL, f'{WALL} at least') if other == 'timm' else ''}"
        )


def reached(met: bool, aim: str) -> str:
    return f"  {'met' if met else 'missed'}: {aim}"


def write(root: Path, count: int, photos: Path | None) -> None:
    """`root`/set: a folder of class folders in train/ and in val/."""
    images.write(root / "all", count, 500, photos)
    for folder in (root / "all").iterdir():
        for number, path in enumerate(sorted(folder.iterdir())):
            to = root / "set" / ("train" if number < 0.4 * count else "val") / folder.name
            to.mkdir(parents=True, exist_ok=True)
            path.rename(to / path.name)


def run(way: str, command: list[str], root: Path) -> Cost:
    """What the command of a way costs. Raises RuntimeError if it fails."""
    kind, _, where = way.partition(" ")
    cache = root / f"cache {where}"
    if kind == "new":
        shutil.rmtree(cache, ignore_errors=True)
    environment = os.environ | {"ONELOOP_CACHE": str(cache), "WANDB_MODE": "offline"}
    environment |= {"PYTHONPATH": str(Path(command[0]).parents[1])}  # a recipe's own package
    os.sync()  # what an earlier way has left to write is not this one's
    return cost([sys.executable, *command], environment, str(root))


def plain(folder: str) -> None:
    import torch.nn.functional as F
    from torch import no_grad, optim, save
    from torch.utils.data import DataLoader
    from torchvision import datasets, models, transforms

    tensor = [transforms.ToTensor(), transforms.Normalize(image_loaders.MEAN, image_loaders.STD)]
    crop = transforms.Compose([transforms.RandomResizedCrop(SIZE), transforms.RandomHorizontalFlip(), *tensor])
    centre = transforms.Compose([transforms.Resize(SIZE * 8 // 7), transforms.CenterCrop(SIZE), *tensor])
    train = DataLoader(datasets.ImageFolder(f"{folder}/train", crop), BATCH, shuffle=True, num_workers=2)
    held = DataLoader(datasets.ImageFolder(f"{folder}/val", centre), BATCH, num_workers=2)
    net = models.resnet18(num_classes=2)
    optimizer = optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.05, fused=True)
    for _ in range(EPOCHS):
        net.train()
        for pixels, labels in train:
            optimizer.zero_grad()
            F.cross_entropy(net(pixels), labels).backward()
            optimizer.step()
        net.eval()
        with no_grad():
            print(sum((net(pixels).argmax(1) == labels).sum().item() for pixels, labels in held))
    save(net.state_dict(), "plain.pt")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        plain(sys.argv[2])
    else:
        tyro.cli(main, description=__doc__)
