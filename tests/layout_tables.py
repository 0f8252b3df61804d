"""Tables of images as publishers and tools write them."""

import json

from layouts import CD, TEST, TRAIN, VAL, Layout, Truth, none, rows


def ids(count: int, start: int = 0) -> list[str]:
    return [f"ISIC_00{number:05}" for number in range(start, start + count)]


def table(name: str, ships: str, rule: str, content: str, file: str, truth: Truth, **more) -> Layout:
    return Layout(name, ships, rule, truth, {file: content}, data=file, **more)


AB = {f"images/{n:03}.jpg": (CD[n % 2], "") for n in range(6)}
SPLIT3 = (TRAIN, VAL, TEST)


def split3(path: str) -> Truth:
    return {path.format(n=n): (CD[n % 2], SPLIT3[n // 2]) for n in range(6)}


TABLES = [
    table(
        "HAM10000",
        "`HAM10000_metadata.csv`: image_id, dx; images in two folders",
        "ids by stem below the table",
        rows(
            "lesion_id,image_id,dx,dx_type,age,sex,localization",
            (f"HAM_{n // 2},{i},{('nv', 'mel')[n % 2]},histo,80.0,male,scalp" for n, i in enumerate(ids(6))),
        ),
        "HAM10000_metadata.csv",
        {f"HAM10000_images_part_{1 + n // 3}/{i}.jpg": (("nv", "mel")[n % 2], "") for n, i in enumerate(ids(6))},
        says="--group lesion_id",
    ),
    table(
        "ISIC 2019",
        "`ISIC_2019_Training_GroundTruth.csv`: image, one-hot columns",
        "one-hot columns",
        rows("image,MEL,NV,UNK", (f"{i},{float(n % 2)},{float(1 - n % 2)},0.0" for n, i in enumerate(ids(6)))),
        "ISIC_2019_Training_GroundTruth.csv",
        {f"ISIC_2019_Training_Input/{i}.jpg": (("NV", "MEL")[n % 2], "") for n, i in enumerate(ids(6))},
    ),
    table(
        "APTOS 2019",
        "`train.csv`: id_code, diagnosis; `train_images/*.png`",
        "ids by stem",
        rows("id_code,diagnosis", (f"{n:012x},{n % 2}" for n in range(6))),
        "train.csv",
        {f"train_images/{n:012x}.png": (str(n % 2), "") for n in range(6)} | none("test_images/ffff{n}.png"),
    ),
    table(
        "Dog Breed (Kaggle)",
        "`labels.csv`: id, breed; `train/`, `test/` flat",
        "ids by stem",
        rows("id,breed", (f"00{n:030x},{('beagle', 'boxer')[n % 2]}" for n in range(6))),
        "labels.csv",
        {f"train/00{n:030x}.jpg": (("beagle", "boxer")[n % 2], "") for n in range(6)} | none("test/ee{n}.jpg"),
    ),
    table(
        "Cassava (Kaggle)",
        "`train.csv`: image_id with suffix, label; `train_images/`",
        "names below the table",
        rows("image_id,label", (f"{n}.jpg,{n % 2}" for n in range(6))),
        "train.csv",
        {f"train_images/{n}.jpg": (str(n % 2), "") for n in range(6)},
    ),
    table(
        "Plant Pathology 2020",
        "`train.csv`: image_id, one-hot columns",
        "one-hot columns",
        rows(
            "image_id,healthy,rust,scab", (f"Train_{n},{int(n % 3 == 0)},{int(n % 3 == 1)},{int(n % 3 == 2)}" for n in range(6))
        ),
        "train.csv",
        {f"images/Train_{n}.jpg": (("healthy", "rust", "scab")[n % 3], "") for n in range(6)},
    ),
    table(
        "GTSRB, its table",
        "`GT-final_test.csv` with `;`: Filename, ClassId",
        "semicolons",
        rows("Filename;Width;Height;ClassId", (f"0000{n}.ppm;53;54;{n % 2}" for n in range(6))),
        "GT-final_test.csv",
        {f"0000{n}.ppm": (str(n % 2), "") for n in range(6)},
    ),
    table(
        "Humpback Whale (Kaggle)",
        "`train.csv`: Image, Id",
        "the only other column",
        rows("Image,Id", (f"{n}.jpg,w_{n % 2}" for n in range(6))),
        "train.csv",
        {f"train/{n}.jpg": (f"w_{n % 2}", "") for n in range(6)},
    ),
    table(
        "backslashes",
        "paths as Windows writes them",
        "any separator",
        rows("path,label", (f"images\\{n:03}.jpg,{CD[n % 2]}" for n in range(6))),
        "t.csv",
        AB,
    ),
    table(
        "paths of another machine",
        "`C:\\Users\\me\\images\\…`",
        "the longest common tail",
        rows("path,label", (f"C:\\Users\\me\\data\\images\\{n:03}.jpg,{CD[n % 2]}" for n in range(6))),
        "t.csv",
        AB,
    ),
    table("UTF-16 and tabs", "Excel's Unicode text", "encoding by its mark", "", "t.tsv", AB),
    table(
        "fastai",
        "is_valid: True, False",
        "is_valid",
        rows("name,label,is_valid", (f"images/{n:03}.jpg,{CD[n % 2]},{n > 3}" for n in range(6))),
        "t.csv",
        {f"images/{n:03}.jpg": (CD[n % 2], VAL if n > 3 else TRAIN) for n in range(6)},
        says="is_valid",
    ),
    table(
        "dev, eval",
        "split: train, dev, eval",
        "names of the parts",
        rows("path,label,split", (f"images/{n:03}.jpg,{CD[n % 2]},{('train', 'dev', 'eval')[n // 2]}" for n in range(6))),
        "t.csv",
        split3("images/{n:03}.jpg"),
    ),
    table(
        "folds",
        "fold: 0 … 4",
        "refused: `--split-column none`",
        rows("path,label,fold", (f"images/{n:03}.jpg,{CD[n % 2]},{n % 5}" for n in range(6))),
        "t.csv",
        AB,
        refused="--split-column none",
        flags=("--split-column", "none"),
    ),
    table(
        "a list",
        "`list.txt`: path and label",
        "path, then label",
        rows("", (f"images/{n:03}.jpg {CD[n % 2]}" for n in range(6))),
        "list.txt",
        AB,
    ),
    Layout(
        "CVAT's ImageNet list",
        "`default.txt`: path and number; `synsets.txt`",
        "names beside the list",
        AB,
        {"default.txt": rows("", (f"images/{n:03}.jpg {n % 2}" for n in range(6))), "synsets.txt": "cat\ndog\n"},
        data="default.txt",
    ),
    table(
        "Label Studio, CSV",
        "image: `/data/upload/1/<hash>-name.jpg`, choice",
        "the name without the hash",
        rows(
            "annotation_id,annotator,choice,created_at,id,image,lead_time,updated_at",
            (f"{n},1,{CD[n % 2]},2024,{n},/data/upload/1/{n:08x}-{n:03}.jpg,1.5,2024" for n in range(6)),
        ),
        "export.csv",
        AB,
    ),
    table(
        "Label Studio, JSON",
        "tasks with annotations",
        "its choices",
        json.dumps(
            [
                {
                    "id": n,
                    "data": {"image": f"/data/local-files/?d=photos/images/{n:03}.jpg"},
                    "annotations": [{"result": [{"value": {"choices": [CD[n % 2]]}, "type": "choices"}]}],
                }
                for n in range(6)
            ]
        ),
        "export.json",
        AB,
    ),
    table(
        "COCO categories",
        "`images`, `annotations`, `categories`",
        "one category an image",
        json.dumps(
            {
                "images": [{"id": n, "file_name": f"{n:03}.jpg"} for n in range(6)],
                "annotations": [{"id": n, "image_id": n, "category_id": n % 2} for n in range(6)],
                "categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}],
            }
        ),
        "labels.json",
        AB,
    ),
    table(
        "no header",
        "`path,label` rows alone",
        "by their suffixes",
        rows("", (f"images/{n:03}.jpg,{CD[n % 2]}" for n in range(6))),
        "t.csv",
        AB,
    ),
    table(
        "the same name twice",
        "ids of which two files have the name",
        "refused: both are named",
        rows("id,label", (f"{n:03},{CD[n % 2]}" for n in range(6))),
        "t.csv",
        AB | {"thumbs/000.jpg": None},
        refused="could be images/000.jpg and thumbs/000.jpg",
    ),
    table(
        "numbers as a split",
        "split: 0, 1",
        "refused by row",
        rows("path,label,split", (f"images/{n:03}.jpg,{CD[n % 2]},{n % 2}" for n in range(6))),
        "t.csv",
        AB,
        refused="row 1 has the split '0'",
        flags=("--split-column", "none"),
    ),
]
