"""Data sets of images with several labels, as publishers and tools write them. Labels of an image are one text, `a|b`."""

import json

from layouts import TEST, TRAIN, VAL, Layout, Truth, rows

SETS = ("cat|dog", "", "dog", "cat")  # labels of images in turn; of all, several or none, too


def of(path: str, count: int = 8, split: str = "", sets: tuple[str, ...] = SETS) -> Truth:
    return {path.format(n): (sets[n % len(sets)], split) for n in range(count)}


def ones(n: int, columns: tuple[str, ...] = ("cat", "dog"), sets: tuple[str, ...] = SETS, sign: str = ",") -> str:
    return sign.join(str(int(name in sets[n % len(sets)].split("|"))) for name in columns)


def roboflow() -> Layout:
    texts, truth = {}, {}
    for part, split in (("train", TRAIN), ("valid", VAL), ("test", TEST)):
        texts[f"{part}/_classes.csv"] = rows("filename, cat, dog", (f"{part}{n}.rf.jpg, {ones(n, sign=', ')}" for n in range(4)))
        truth |= of(f"{part}/{part}{{}}.rf.jpg", 4, split)
    return Layout("Roboflow multi-label", "`_classes.csv` in train/, valid/, test/: filename, a column of 0 and 1 for each label",
                  "_classes.csv", truth, texts, says="labels are those of")  # fmt: skip


NIH = ("Cardiomegaly|Emphysema", "No Finding", "Emphysema", "Cardiomegaly")
TAGS = ("clear|primary", "haze|primary|water", "haze|primary", "clear|primary|water")
CHEXPERT = ("Edema", "Pneumonia|?Edema", "Edema|Pneumonia", "?Edema|?Pneumonia")
EDEMA, PNEUMONIA = ("1.0", "-1.0", "1.0", "-1.0"), ("", "1.0", "1.0", "-1.0")


def choices(n: int) -> dict:
    value = {"choices": SETS[n % 4].split("|")} if SETS[n % 4] else {"choices": []}
    return {"data": {"image": f"images/{n}.jpg"}, "annotations": [{"result": [{"value": value}]}]}


def coco() -> str:
    numbers = {"cat": 3, "dog": 7}
    boxes = [(n, numbers[name]) for n in range(8) for name in SETS[n % 4].split("|") if name]
    return json.dumps(
        {
            "images": [{"id": n, "file_name": f"images/{n}.jpg"} for n in range(8)],
            "categories": [{"id": number, "name": name} for name, number in numbers.items()],
            "annotations": [{"image_id": image, "category_id": number} for image, number in boxes],
        }
    )


LABELS = [
    Layout(
        "NIH ChestX-ray14",
        "`Data_Entry_2017.csv`: Image Index, Finding Labels with bars between them; `images_001/images/`",
        "lists of labels",
        of("images_001/images/0000{}_000.png", sets=NIH),
        {
            "Data_Entry_2017.csv": rows(
                "Image Index,Finding Labels,Follow-up #,Patient ID", (f"0000{n}_000.png,{NIH[n % 4]},0,{n}" for n in range(8))
            )
        },
        data="Data_Entry_2017.csv",
        says="labels with | between them",
    ),
    Layout(
        "CheXpert",
        "`train.csv`: Path, Sex, Age …, columns of 1.0, 0.0, -1.0 and blanks",
        "refused: what is -1? `--uncertain ignore`, 0 or 1",
        of("train/patient{}/view1.jpg", sets=CHEXPERT),
        {
            "train.csv": rows(
                "Path,Sex,Age,Edema,Pneumonia",
                (
                    f"CheXpert-v1.0-small/train/patient{n}/view1.jpg,Male,{40 + n},{EDEMA[n % 4]},{PNEUMONIA[n % 4]}"
                    for n in range(8)
                ),
            )
        },
        data="train.csv",
        flags=("--uncertain", "ignore"),
        refused="labels are -1, uncertain: --uncertain ignore",
        code=2,
    ),
    Layout(
        "Planet Amazon (Kaggle)",
        "`train_v2.csv`: image_name, tags with blanks between them",
        "lists of labels",
        of("train-jpg/train_{}.jpg", sets=TAGS),
        {"train_v2.csv": rows("image_name,tags", (f"train_{n},{TAGS[n % 4].replace('|', ' ')}" for n in range(8)))},
        data="train_v2.csv",
    ),
    Layout(
        "one-hot with several",
        "`train.csv`: image_id, a column of 0 and 1 for each label",
        "one-hot columns, several labels",
        of("images/{}.jpg"),
        {"train.csv": rows("image_id,cat,dog", (f"{n},{ones(n)}" for n in range(8)))},
        data="train.csv",
        says="without any: 2",
    ),
    roboflow(),
    Layout(
        "imagefolder, lists",
        "`metadata.jsonl`: file_name, labels as lists",
        "metadata.jsonl",
        of("train/{}.jpg"),
        {"train/metadata.jsonl": "".join(
            json.dumps({"file_name": f"{n}.jpg", "labels": [*filter(None, SETS[n % 4].split("|"))]}) + "\n" for n in range(8)
        )},
    ),
    Layout(
        "COCO, several categories",
        "`annotations.json`: the categories of each image's boxes",
        "lists of labels",
        of("images/{}.jpg"),
        {"annotations.json": coco()},
        data="annotations.json",
    ),
    Layout(
        "Label Studio, several choices",
        "`export.json`: several choices for an image",
        "lists of labels",
        of("images/{}.jpg"),
        {"export.json": json.dumps([choices(n) for n in range(8)])},
        data="export.json",
    ),
]  # fmt: skip
