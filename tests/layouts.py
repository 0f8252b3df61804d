"""Tiny replicas of data sets as their publishers, and tools, ship them: what lies where, and what is right of each image.

`tests/test_layouts.py` reads each; `benchmarks/layouts.py` shows what other libraries make of the same replica.
"""

import io
import json
import tarfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

TRAIN, VAL, TEST = "train", "validation", "test"
Truth = dict[str, tuple[str, str] | None]  # path -> class and split (empty: to be made); None: no image to train on


@dataclass(frozen=True)
class Layout:
    """`truth` of each image; `texts` beside them. `data` is what is named, of the replica; `flags` what is to be told.

    `refused`: what the message has, where the folder alone is refused; `flags` then are those that it names.
    """

    name: str
    ships: str
    rule: str
    truth: Truth
    texts: dict[str, str] = field(default_factory=dict)
    data: str = ""
    flags: tuple[str, ...] = ()
    refused: str = ""
    code: int = 4
    left_out: int = 0
    archive: str = ""
    says: str = ""


def image(number: int) -> bytes:
    """An image of its own, in a format that needs no encoder."""
    return b"P6 4 4 255\n" + bytes((number * 7 + place * 31 + number // 256 * place) % 256 for place in range(48))


def write(layout: Layout, place: Path) -> Path:
    """The replica in `place`. Returns what is to be named."""
    contents = {path: image(number) for number, path in enumerate(layout.truth)}
    contents |= {path: text.encode() for path, text in layout.texts.items()}
    if layout.archive.endswith(".zip"):
        place.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(place / layout.archive, "w") as archive:
            for path, content in contents.items():
                archive.writestr(path, content)
        return place / layout.data
    if layout.archive:
        place.mkdir(parents=True, exist_ok=True)
        with tarfile.open(place / layout.archive, "w:gz") as archive:
            for path, content in contents.items():
                entry = tarfile.TarInfo(path)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        return place / layout.data
    for path, content in contents.items():
        file = place / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return place / layout.data


def grid(where: str, classes: Iterable[str], count: int = 3, split: str = "", start: int = 0, names: dict[str, str] | None = None) -> Truth:
    """`count` images of each class; `where` has {c} for it and {n} for the number."""
    return {
        where.format(c=label, n=number): ((names or {}).get(label, label), split)
        for label in classes
        for number in range(start, start + count)
    }


def none(where: str, count: int = 3) -> Truth:
    return {where.format(n=number): None for number in range(count)}


def rows(head: str, lines: Iterable[str]) -> str:
    return "\n".join([*filter(None, [head]), *lines]) + "\n"


CD = ("cat", "dog")
WN = ("n01440764", "n01443537")
KINDS4 = ("glioma", "meningioma", "notumor", "pituitary")


def pair(one: str, other: str, part: str) -> Layout:
    truth = grid(one + "/{c}/{n}.jpg", CD, split=TRAIN) | grid(other + "/{c}/{n}.jpg", CD, split=part)
    return Layout(f"{one}/, {other}/", f"`{one}/<class>/`, `{other}/<class>/`", "names of the parts of a split", truth)


FOLDERS = [
    Layout("class folders", "`<class>/`", "class folders", grid("{c}/{n}.jpg", CD)),
    Layout("CINIC-10", "`train/<class>/`, `valid/`, `test/`", "parts of a split",
           grid("train/{c}/{n}.png", CD, split=TRAIN) | grid("valid/{c}/{n}.png", CD, split=VAL) | grid("test/{c}/{n}.png", CD, split=TEST)),
    Layout("Imagenette", "`imagenette2/train/<wnid>/`, `val/`, `noisy_imagenette.csv`", "wrapper",
           grid("imagenette2/train/{c}/{n}.JPEG", WN, split=TRAIN) | grid("imagenette2/val/{c}/{n}.JPEG", WN, split=VAL),
           {"imagenette2/noisy_imagenette.csv": "path,noisy_labels_0,noisy_labels_1\ntrain/n01440764/0.JPEG,n01440764,n01443537\n"}),
    Layout("Flowers (Kaggle)", "`flowers/<class>/`", "wrapper", grid("flowers/{c}/{n}.jpg", ("daisy", "rose", "tulip"))),
    Layout("UC Merced", "`UCMerced_LandUse/Images/<class>/*.tif`", "wrappers",
           grid("UCMerced_LandUse/Images/{c}/{n}.tif", ("beach", "forest")), {"UCMerced_LandUse/readme.txt": "Land use\n"}),
    Layout("EuroSAT", "`2750/<class>/`", "wrapper", grid("2750/{c}/{c}_{n}.jpg", ("AnnualCrop", "Forest", "River"))),
    Layout("RESISC45", "`NWPU-RESISC45/<class>/`", "wrapper", grid("NWPU-RESISC45/{c}/{c}_{n}.jpg", ("airport", "beach", "train_station"))),
    Layout("PetImages", "`PetImages/Cat/`, `Dog/`, licence beside", "wrapper", grid("PetImages/{c}/{n}.jpg", ("Cat", "Dog")),
           {"MSR-LA - 3467.docx": "x", "readme[1].txt": "x\n"}),
    Layout("Chest X-ray (Kaggle)", "`chest_xray/train/`, `test/`, `val/`, `__MACOSX/`", "wrapper",
           grid("chest_xray/train/{c}/{n}.jpeg", ("NORMAL", "PNEUMONIA"), split=TRAIN)
           | grid("chest_xray/test/{c}/{n}.jpeg", ("NORMAL", "PNEUMONIA"), split=TEST)
           | grid("chest_xray/val/{c}/{n}.jpeg", ("NORMAL", "PNEUMONIA"), split=VAL),
           {"chest_xray/__MACOSX/train/NORMAL/._0.jpeg": "x"}),
    Layout("Intel scenes", "`seg_train/seg_train/<class>/`, `seg_test/seg_test/`, `seg_pred/seg_pred/` flat", "names of the parts, inner wrappers",
           grid("seg_train/seg_train/{c}/{n}.jpg", ("forest", "sea"), split=TRAIN)
           | grid("seg_test/seg_test/{c}/{n}.jpg", ("forest", "sea"), split=TEST) | none("seg_pred/seg_pred/{n}.jpg"), left_out=3),
    Layout("Brain tumour MRI", "`Training/<class>/`, `Testing/<class>/`", "names of the parts",
           grid("Training/{c}/{n}.jpg", KINDS4, split=TRAIN) | grid("Testing/{c}/{n}.jpg", KINDS4, split=TEST)),
    Layout("Br35H", "`yes/`, `no/`, `pred/` flat", "a flat folder called pred has no labels",
           grid("{c}/{n}.jpg", ("no", "yes")) | none("pred/{n}.jpg"), says="3 images in pred/ have no class"),
    pair("training_set", "test_set", TEST),
    pair("train_set", "val_set", VAL),
    pair("train_images", "test_images", TEST),
    pair("train", "dev", VAL),
    pair("train", "eval", TEST),
    pair("train", "holdout", TEST),
    pair("train2017", "val2017", VAL),
    pair("imagenet_train", "imagenet_val", VAL),
    Layout("Plant Seedlings (Kaggle)", "`train/<class>/`, `test/` flat, `sample_submission.csv`", "a flat test has no labels",
           grid("train/{c}/{n}.png", ("Charlock", "Cleavers")) | none("test/{n}.png"),
           {"sample_submission.csv": rows("file,species", (f"{n}.png,Charlock" for n in range(3)))}, left_out=3),
    Layout("State Farm (Kaggle)", "`imgs/train/c0/`, `imgs/test/` flat, `driver_imgs_list.csv`", "wrapper, flat test",
           grid("imgs/train/{c}/img_{c}{n}.jpg", ("c0", "c1")) | none("imgs/test/img_t{n}.jpg"),
           {"driver_imgs_list.csv": "subject,classname,img\np002,c0,img_c00.jpg\n"}, left_out=3),
    Layout("train doubled", "`train/train/<class>/`, `test/test/` flat", "inner wrappers, flat test",
           grid("train/train/{c}/{n}.jpg", CD) | none("test/test/{n}.jpg"), left_out=3),
    Layout("split in each class", "`<class>/train/`, `<class>/test/`", "split inside the class",
           grid("{c}/train/{n}.jpg", CD, split=TRAIN) | grid("{c}/test/{n}.jpg", CD, split=TEST)),
    Layout("Caltech-101", "`101_ObjectCategories/<class>/` with `BACKGROUND_Google`", "Caltech's clutter is no class",
           grid("101_ObjectCategories/{c}/image_{n}.jpg", ("Faces", "accordion")) | none("101_ObjectCategories/BACKGROUND_Google/image_{n}.jpg"),
           says="BACKGROUND_Google is no class"),
    Layout("Stanford Dogs", "`Images/<wnid-breed>/`, `Annotation/<wnid-breed>/` without suffixes", "wrapper",
           grid("Images/{c}/{c}_{n}.jpg", ("n02085620-Chihuahua", "n02085782-Japanese_spaniel")),
           {"Annotation/n02085620-Chihuahua/n02085620_0": "<annotation/>"}),
    Layout("AwA2", "`Animals_with_Attributes2/JPEGImages/<class>/`, `classes.txt`", "wrappers",
           grid("Animals_with_Attributes2/JPEGImages/{c}/{c}_{n}.jpg", ("antelope", "bat")),
           {"Animals_with_Attributes2/classes.txt": "1\tantelope\n2\tbat\n"}),
    Layout("PACS", "`PACS/<domain>/<class>/`", "refused: classes or domains? `--classes-at 3`",
           {f"PACS/{d}/{c}/{n}.jpg": (c, "") for d in ("art_painting", "photo", "sketch") for c in CD for n in range(2)},
           flags=("--classes-at", "3"), refused="--classes-at 3"),
    Layout("Office-31", "`<domain>/images/<class>/`", "refused: `--classes-at 3`",
           {f"{d}/images/{c}/{n}.jpg": (c, "") for d in ("amazon", "dslr", "webcam") for c in ("bike", "mug") for n in range(2)},
           flags=("--classes-at", "3"), refused="--classes-at 3"),
    Layout("PlantVillage", "`plantvillage dataset/color/<class>/`, `grayscale/`, `segmented/`", "refused: name one of the three, or `--classes-at 3`",
           {f"plantvillage dataset/{d}/{c}/{n}.jpg": (c, "") for d in ("color", "grayscale", "segmented")
            for c in ("Apple___scab", "Corn___rust") for n in range(2)},
           flags=("--classes-at", "3"), refused="--classes-at 3"),
    Layout("SUN397", "`SUN397/<letter>/<class>[/<sub>]/`, `ClassName.txt`", "ClassName.txt",
           {f"SUN397/a/abbey/{n}.jpg": ("abbey", "") for n in range(2)} | {f"SUN397/c/church/indoor/{n}.jpg": ("church/indoor", "") for n in range(2)}
           | {f"SUN397/c/church/outdoor/{n}.jpg": ("church/outdoor", "") for n in range(2)},
           {"SUN397/ClassName.txt": "/a/abbey\n/c/church/indoor\n/c/church/outdoor\n"}),
    Layout("nested classes", "`<family>/<species>/`", "`--classes-at 2`; without it a line proposes it",
           {f"{a}/{b}/{n}.jpg": (b, "") for a, b in (("felidae", "lion"), ("felidae", "puma"), ("canidae", "wolf"), ("canidae", "fox")) for n in range(2)},
           flags=("--classes-at", "2")),
    Layout("ImageNet (Kaggle)", "`ILSVRC/Data/CLS-LOC/train/<wnid>/`, `val/` and `test/` flat, `LOC_val_solution.csv`", "LOC_val_solution.csv",
           grid("ILSVRC/Data/CLS-LOC/train/{c}/{c}_{n}.JPEG", WN, split=TRAIN)
           | {f"ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_{n}.JPEG": (WN[n % 2], VAL) for n in range(4)}
           | none("ILSVRC/Data/CLS-LOC/test/ILSVRC2012_test_{n}.JPEG"),
           {"LOC_val_solution.csv": rows("ImageId,PredictionString", (f"ILSVRC2012_val_{n},{WN[n % 2]} 111 108 230 173 " for n in range(4))),
            "LOC_sample_submission.csv": rows("ImageId,PredictionString", (f"ILSVRC2012_test_{n},{WN[0]} 1 1 5 5" for n in range(3))),
            "LOC_synset_mapping.txt": f"{WN[0]} tench\n{WN[1]} goldfish\n"}, left_out=3),
    Layout("Tiny ImageNet", "`train/<wnid>/images/`, `val/images/` flat, `val/val_annotations.txt`", "val_annotations.txt",
           grid("tiny-imagenet-200/train/{c}/images/{c}_{n}.JPEG", WN, split=TRAIN)
           | {f"tiny-imagenet-200/val/images/val_{n}.JPEG": (WN[n % 2], VAL) for n in range(4)} | none("tiny-imagenet-200/test/images/test_{n}.JPEG"),
           {"tiny-imagenet-200/val/val_annotations.txt": rows("", (f"val_{n}.JPEG\t{WN[n % 2]}\t0\t32\t44\t62" for n in range(4))),
            "tiny-imagenet-200/wnids.txt": "\n".join(WN), "tiny-imagenet-200/words.txt": f"{WN[0]}\ttench\n{WN[1]}\tgoldfish\n",
            f"tiny-imagenet-200/train/{WN[0]}/{WN[0]}_boxes.txt": f"{WN[0]}_0.JPEG\t0\t10\t63\t58\n"}, left_out=3),
    Layout("GTSRB (Kaggle)", "`Train/<0…42>/`, `Test/` and `Meta/` flat, `Test.csv`", "Test.csv",
           grid("Train/{c}/{c}_{n}.png", ("0", "1"), split=TRAIN) | {f"Test/0000{n}.png": (str(n % 2), TEST) for n in range(4)} | none("Meta/{n}.png", 2),
           {"Test.csv": rows("Width,Height,Roi.X1,ClassId,Path", (f"53,54,6,{n % 2},Test/0000{n}.png" for n in range(4))),
            "Train.csv": rows("Width,Height,Roi.X1,ClassId,Path", (f"53,54,6,{c},Train/{c}/{c}_{n}.png" for c in "01" for n in range(3)))},
           left_out=2),
    Layout("Food-101", "`images/<class>/`, `meta/train.txt`, `meta/test.txt` without suffixes", "the publisher's split lists",
           grid("food-101/images/{c}/{c}{n}.jpg", ("apple_pie", "sushi"), 3, TRAIN) | grid("food-101/images/{c}/{c}{n}.jpg", ("apple_pie", "sushi"), 1, TEST, 3),
           {"food-101/meta/train.txt": rows("", (f"{c}/{c}{n}" for c in ("apple_pie", "sushi") for n in range(3))),
            "food-101/meta/test.txt": rows("", (f"{c}/{c}3" for c in ("apple_pie", "sushi"))),
            "food-101/meta/classes.txt": "apple_pie\nsushi\n", "food-101/meta/labels.txt": "Apple pie\nSushi\n"}),
    Layout("DTD", "`images/<class>/`, `labels/train1.txt` … `test10.txt`", "the first of the publisher's splits",
           grid("dtd/images/{c}/{c}_{n}.jpg", ("banded", "dotted"), 2, TRAIN) | grid("dtd/images/{c}/{c}_{n}.jpg", ("banded", "dotted"), 1, VAL, 2)
           | grid("dtd/images/{c}/{c}_{n}.jpg", ("banded", "dotted"), 1, TEST, 3),
           {f"dtd/labels/{part}{k}.txt": rows("", (f"{c}/{c}_{(n + k - 1) % 4}.jpg" for c in ("banded", "dotted") for n in numbers))
            for k in (1, 2, 10) for part, numbers in (("train", (0, 1)), ("val", (2,)), ("test", (3,)))}
           | {"dtd/labels/labels_joint_anno.txt": "banded/banded_0.jpg banded dotted\n"}, says="2 more such splits are not used"),
    Layout("MIT Indoor 67", "`Images/<class>/`, `TrainImages.txt`, `TestImages.txt`", "the publisher's split lists",
           grid("Images/{c}/{n}.jpg", ("airport", "kitchen"), 3, TRAIN) | grid("Images/{c}/{n}.jpg", ("airport", "kitchen"), 1, TEST, 3),
           {"TrainImages.txt": rows("", (f"{c}/{n}.jpg" for c in ("airport", "kitchen") for n in range(3))),
            "TestImages.txt": rows("", (f"{c}/3.jpg" for c in ("airport", "kitchen")))}),
    Layout("CUB-200-2011", "`images/<number.class>/`, `images.txt`, `image_class_labels.txt`, `classes.txt`, `train_test_split.txt`", "CUB's lists",
           grid("CUB/images/{c}/{c}_{n}.jpg", ("001.Auk", "002.Owl"), 2, TRAIN) | grid("CUB/images/{c}/{c}_{n}.jpg", ("001.Auk", "002.Owl"), 1, TEST, 2),
           {"CUB/images.txt": rows("", (f"{i * 3 + n + 1} {c}/{c}_{n}.jpg" for i, c in enumerate(("001.Auk", "002.Owl")) for n in range(3))),
            "CUB/image_class_labels.txt": rows("", (f"{i * 3 + n + 1} {i + 1}" for i in range(2) for n in range(3))),
            "CUB/classes.txt": "1 001.Auk\n2 002.Owl\n",
            "CUB/train_test_split.txt": rows("", (f"{i * 3 + n + 1} {int(n < 2)}" for i in range(2) for n in range(3)))}),
    Layout("Oxford-IIIT Pet", "`images/<Class>_<n>.jpg` flat, `annotations/trainval.txt`, `test.txt`, `trimaps/`", "the publisher's lists; classes by the names",
           {f"images/{c}_{n}.jpg": (c, TRAIN if n < 2 else TEST) for c in ("Abyssinian", "great_pyrenees") for n in range(3)}
           | {f"annotations/trimaps/{c}_{n}.png": None for c in ("Abyssinian", "great_pyrenees") for n in range(3)},
           {"annotations/trainval.txt": rows("", (f"{c}_{n} {i + 1} {i + 1} 1" for i, c in enumerate(("Abyssinian", "great_pyrenees")) for n in range(2))),
            "annotations/test.txt": rows("", (f"{c}_2 {i + 1} {i + 1} 1" for i, c in enumerate(("Abyssinian", "great_pyrenees")))),
            "annotations/list.txt": "#Image CLASS-ID SPECIES BREED ID\nAbyssinian_0 1 1 1\n"}, says="images in no list"),
    Layout("Oxford-IIIT Pet, images alone", "`<Class>_<n>.jpg` flat", "refused: `--label-from '^(.+)_[0-9]+$'`",
           {f"{c}_{n}.jpg": (c, "") for c in ("Abyssinian", "great_pyrenees") for n in range(3)},
           flags=("--label-from", "^(.+)_[0-9]+$"), refused="--label-from '^(.+)_[0-9]+$'"),
    Layout("Dogs vs. Cats (Kaggle)", "`train/cat.0.jpg` flat, `test1/1.jpg`", "refused: `--label-from '^(.+)[.][0-9]+$'`",
           {f"train/{c}.{n}.jpg": (c, "") for c in CD for n in range(3)} | none("test1/{n}.jpg"),
           flags=("--label-from", "^(.+)[.][0-9]+$"), refused="--label-from '^(.+)[.][0-9]+$'", left_out=3),
    Layout("COIL-100", "`coil-100/obj1__0.png` flat", "refused: `--label-from`",
           {f"coil-100/obj{c}__{n}.png": (f"obj{c}", "") for c in (1, 2) for n in (0, 5, 10)},
           flags=("--label-from", "^(.+)__[0-9]+$"), refused="--label-from"),
    Layout("FGVC-Aircraft", "`images/` flat, `images_variant_train.txt`, `images_family_…`", "refused: which list? `--columns label=variant`",
           {f"data/images/{n}.jpg": (("707-320", "Falcon 2000")[n % 2], (TRAIN, VAL, TEST)[n // 2]) for n in range(6)},
           {f"data/images_{level}_{part}.txt": rows("", (f"{n} {names[n % 2]}" for n in numbers))
            for level, names in (("variant", ("707-320", "Falcon 2000")), ("family", ("Boeing 707", "Falcon 2000")))
            for part, numbers in (("train", (0, 1)), ("val", (2, 3)), ("test", (4, 5)))},
           flags=("--columns", "label=variant"), refused="--columns label=", code=2),
    Layout("Flowers-102", "`jpg/image_00001.jpg`, `imagelabels.mat`", "refused: Matlab's labels", none("jpg/image_{n}.jpg"),
           {"imagelabels.mat": "MATLAB 5.0", "setid.mat": "MATLAB 5.0"}, refused="imagelabels.mat"),
    Layout("MVTec AD", "`bottle/train/good/`, `bottle/test/broken/`, `bottle/ground_truth/`", "refused: test has classes that train lacks",
           {f"{o}/{p}/{n}.png": None for o in ("bottle", "cable") for p in ("train/good", "test/good", "test/broken", "ground_truth/broken") for n in range(2)},
           refused="split inside"),
    Layout("images and masks", "`images/`, `masks/` flat", "refused: masks", none("images/{n}.png") | none("masks/{n}.png"), refused="called like images"),
    Layout("flat train and test", "`train/`, `test/` flat", "refused: no classes", none("train/{n}.jpg", 8) | none("test/{n}.jpg"), refused="called like"),
    Layout("YOLO export", "`train/images/`, `train/labels/*.txt`, `data.yaml`", "refused: no classes",
           none("train/images/{n}.jpg") | none("valid/images/{n}.jpg"),
           {"data.yaml": "nc: 2\n", **{f"train/labels/{n}.txt": "0 0.5 0.5 0.1 0.1\n" for n in range(3)}}, refused="called like"),
    Layout("Roboflow folders", "`train/<class>/`, `valid/`, `test/`, `README.roboflow.txt`", "parts of a split",
           grid("train/{c}/{n}.jpg", CD, split=TRAIN) | grid("valid/{c}/{n}.jpg", CD, split=VAL) | grid("test/{c}/{n}.jpg", CD, split=TEST),
           {"README.roboflow.txt": "x\n", "README.dataset.txt": "x\n"}),
    Layout("metadata.csv", "`train/*.jpg`, `train/metadata.csv`, `test/…`", "metadata.csv",
           {f"{s}/{n}.jpg": (CD[n % 2], s) for s in (TRAIN, TEST) for n in range(4)},
           {f"{s}/metadata.csv": rows("file_name,label", (f"{n}.jpg,{CD[n % 2]}" for n in range(4))) for s in (TRAIN, TEST)}),
    Layout("metadata.jsonl", "`images/*.jpg`, `metadata.jsonl`", "metadata.jsonl",
           {f"images/{n}.jpg": (CD[n % 2], "") for n in range(4)},
           {"metadata.jsonl": rows("", (json.dumps({"file_name": f"images/{n}.jpg", "label": CD[n % 2]}) for n in range(4)))}),
    Layout("a zip file", "`animals.zip` of class folders", "refused: the command that unpacks", grid("{c}/{n}.jpg", CD), archive="animals.zip",
           data="animals.zip", refused="unzip -q", code=2),
    Layout("a tar.gz file", "`animals.tar.gz` in a folder", "refused: the command that unpacks", grid("{c}/{n}.jpg", CD), archive="animals.tar.gz",
           refused="tar -xf", code=1),
]  # fmt: skip


def ids(count: int, start: int = 0) -> list[str]:
    return [f"ISIC_00{number:05}" for number in range(start, start + count)]


def table(name: str, ships: str, rule: str, content: str, file: str, truth: Truth, **more) -> Layout:
    return Layout(name, ships, rule, truth, {file: content}, data=file, **more)


AB = {f"images/{n:03}.jpg": (CD[n % 2], "") for n in range(6)}
SPLIT3 = (TRAIN, VAL, TEST)


def split3(path: str) -> Truth:
    return {path.format(n=n): (CD[n % 2], SPLIT3[n // 2]) for n in range(6)}


TABLES = [
    table("HAM10000", "`HAM10000_metadata.csv`: image_id, dx; images in two folders", "ids by stem below the table",
          rows("lesion_id,image_id,dx,dx_type,age,sex,localization", (f"HAM_{n // 2},{i},{('nv', 'mel')[n % 2]},histo,80.0,male,scalp" for n, i in enumerate(ids(6)))),
          "HAM10000_metadata.csv", {f"HAM10000_images_part_{1 + n // 3}/{i}.jpg": (("nv", "mel")[n % 2], "") for n, i in enumerate(ids(6))},
          says="--group lesion_id"),
    table("ISIC 2019", "`ISIC_2019_Training_GroundTruth.csv`: image, one-hot columns", "one-hot columns",
          rows("image,MEL,NV,UNK", (f"{i},{float(n % 2)},{float(1 - n % 2)},0.0" for n, i in enumerate(ids(6)))),
          "ISIC_2019_Training_GroundTruth.csv", {f"ISIC_2019_Training_Input/{i}.jpg": (("NV", "MEL")[n % 2], "") for n, i in enumerate(ids(6))}),
    table("APTOS 2019", "`train.csv`: id_code, diagnosis; `train_images/*.png`", "ids by stem",
          rows("id_code,diagnosis", (f"{n:012x},{n % 2}" for n in range(6))), "train.csv",
          {f"train_images/{n:012x}.png": (str(n % 2), "") for n in range(6)} | none("test_images/ffff{n}.png")),
    table("Dog Breed (Kaggle)", "`labels.csv`: id, breed; `train/`, `test/` flat", "ids by stem",
          rows("id,breed", (f"00{n:030x},{('beagle', 'boxer')[n % 2]}" for n in range(6))), "labels.csv",
          {f"train/00{n:030x}.jpg": (("beagle", "boxer")[n % 2], "") for n in range(6)} | none("test/ee{n}.jpg")),
    table("Cassava (Kaggle)", "`train.csv`: image_id with suffix, label; `train_images/`", "names below the table",
          rows("image_id,label", (f"{n}.jpg,{n % 2}" for n in range(6))), "train.csv", {f"train_images/{n}.jpg": (str(n % 2), "") for n in range(6)}),
    table("Plant Pathology 2020", "`train.csv`: image_id, one-hot columns", "one-hot columns",
          rows("image_id,healthy,rust,scab", (f"Train_{n},{int(n % 3 == 0)},{int(n % 3 == 1)},{int(n % 3 == 2)}" for n in range(6))), "train.csv",
          {f"images/Train_{n}.jpg": (("healthy", "rust", "scab")[n % 3], "") for n in range(6)}),
    table("GTSRB, its table", "`GT-final_test.csv` with `;`: Filename, ClassId", "semicolons",
          rows("Filename;Width;Height;ClassId", (f"0000{n}.ppm;53;54;{n % 2}" for n in range(6))), "GT-final_test.csv",
          {f"0000{n}.ppm": (str(n % 2), "") for n in range(6)}),
    table("Humpback Whale (Kaggle)", "`train.csv`: Image, Id", "the only other column",
          rows("Image,Id", (f"{n}.jpg,w_{n % 2}" for n in range(6))), "train.csv", {f"train/{n}.jpg": (f"w_{n % 2}", "") for n in range(6)}),
    table("backslashes", "paths as Windows writes them", "any separator", rows("path,label", (f"images\\{n:03}.jpg,{CD[n % 2]}" for n in range(6))), "t.csv", AB),
    table("paths of another machine", "`C:\\Users\\me\\images\\…`", "the longest common tail",
          rows("path,label", (f"C:\\Users\\me\\data\\images\\{n:03}.jpg,{CD[n % 2]}" for n in range(6))), "t.csv", AB),
    table("UTF-16 and tabs", "Excel's Unicode text", "encoding by its mark", "", "t.tsv", AB),
    table("fastai", "is_valid: True, False", "is_valid",
          rows("name,label,is_valid", (f"images/{n:03}.jpg,{CD[n % 2]},{n > 3}" for n in range(6))), "t.csv",
          {f"images/{n:03}.jpg": (CD[n % 2], VAL if n > 3 else TRAIN) for n in range(6)}, says="is_valid"),
    table("dev, eval", "split: train, dev, eval", "names of the parts",
          rows("path,label,split", (f"images/{n:03}.jpg,{CD[n % 2]},{('train', 'dev', 'eval')[n // 2]}" for n in range(6))), "t.csv", split3("images/{n:03}.jpg")),
    table("folds", "fold: 0 … 4", "refused: `--split-column none`", rows("path,label,fold", (f"images/{n:03}.jpg,{CD[n % 2]},{n % 5}" for n in range(6))), "t.csv", AB,
          refused="--split-column none", flags=("--split-column", "none")),
    table("a list", "`list.txt`: path and label", "path, then label", rows("", (f"images/{n:03}.jpg {CD[n % 2]}" for n in range(6))), "list.txt", AB),
    Layout("CVAT's ImageNet list", "`default.txt`: path and number; `synsets.txt`", "names beside the list", AB,
           {"default.txt": rows("", (f"images/{n:03}.jpg {n % 2}" for n in range(6))), "synsets.txt": "cat\ndog\n"}, data="default.txt"),
    table("Label Studio, CSV", "image: `/data/upload/1/<hash>-name.jpg`, choice", "the name without the hash",
          rows("annotation_id,annotator,choice,created_at,id,image,lead_time,updated_at",
               (f"{n},1,{CD[n % 2]},2024,{n},/data/upload/1/{n:08x}-{n:03}.jpg,1.5,2024" for n in range(6))), "export.csv", AB),
    table("Label Studio, JSON", "tasks with annotations", "its choices",
          json.dumps([{"id": n, "data": {"image": f"/data/local-files/?d=photos/images/{n:03}.jpg"},
                       "annotations": [{"result": [{"value": {"choices": [CD[n % 2]]}, "type": "choices"}]}]} for n in range(6)]), "export.json", AB),
    table("COCO categories", "`images`, `annotations`, `categories`", "one category an image",
          json.dumps({"images": [{"id": n, "file_name": f"{n:03}.jpg"} for n in range(6)],
                      "annotations": [{"id": n, "image_id": n, "category_id": n % 2} for n in range(6)],
                      "categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]}), "labels.json", AB),
    table("no header", "`path,label` rows alone", "by their suffixes", rows("", (f"images/{n:03}.jpg,{CD[n % 2]}" for n in range(6))), "t.csv", AB),
    table("the same name twice", "ids of which two files have the name", "refused: both are named", rows("id,label", (f"{n:03},{CD[n % 2]}" for n in range(6))), "t.csv",
          AB | {"thumbs/000.jpg": None}, refused="could be images/000.jpg and thumbs/000.jpg"),
    table("numbers as a split", "split: 0, 1", "refused by row", rows("path,label,split", (f"images/{n:03}.jpg,{CD[n % 2]},{n % 2}" for n in range(6))), "t.csv", AB,
          refused="row 1 has the split '0'", flags=("--split-column", "none")),
]  # fmt: skip
