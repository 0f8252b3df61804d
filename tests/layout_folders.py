"""Folders of images as publishers and tools lay them out."""

import json

from layouts import CD, TEST, TRAIN, VAL, Layout, grid, none, rows

WN = ("n01440764", "n01443537")
KINDS4 = ("glioma", "meningioma", "notumor", "pituitary")


def pair(one: str, other: str, part: str) -> Layout:
    truth = grid(one + "/{c}/{n}.jpg", CD, split=TRAIN) | grid(other + "/{c}/{n}.jpg", CD, split=part)
    return Layout(f"{one}/, {other}/", f"`{one}/<class>/`, `{other}/<class>/`", "names of the parts of a split", truth)


FOLDERS = [
    Layout("class folders", "`<class>/`", "class folders", grid("{c}/{n}.jpg", CD)),
    Layout(
        "CINIC-10",
        "`train/<class>/`, `valid/`, `test/`",
        "parts of a split",
        grid("train/{c}/{n}.png", CD, split=TRAIN)
        | grid("valid/{c}/{n}.png", CD, split=VAL)
        | grid("test/{c}/{n}.png", CD, split=TEST),
    ),
    Layout(
        "Imagenette",
        "`imagenette2/train/<wnid>/`, `val/`, `noisy_imagenette.csv`",
        "wrapper",
        grid("imagenette2/train/{c}/{n}.JPEG", WN, split=TRAIN) | grid("imagenette2/val/{c}/{n}.JPEG", WN, split=VAL),
        {"imagenette2/noisy_imagenette.csv": "path,noisy_labels_0,noisy_labels_1\ntrain/n01440764/0.JPEG,n01440764,n01443537\n"},
    ),
    Layout("Flowers (Kaggle)", "`flowers/<class>/`", "wrapper", grid("flowers/{c}/{n}.jpg", ("daisy", "rose", "tulip"))),
    Layout(
        "UC Merced",
        "`UCMerced_LandUse/Images/<class>/*.tif`",
        "wrappers",
        grid("UCMerced_LandUse/Images/{c}/{n}.tif", ("beach", "forest")),
        {"UCMerced_LandUse/readme.txt": "Land use\n"},
    ),
    Layout("EuroSAT", "`2750/<class>/`", "wrapper", grid("2750/{c}/{c}_{n}.jpg", ("AnnualCrop", "Forest", "River"))),
    Layout(
        "RESISC45",
        "`NWPU-RESISC45/<class>/`",
        "wrapper",
        grid("NWPU-RESISC45/{c}/{c}_{n}.jpg", ("airport", "beach", "train_station")),
    ),
    Layout(
        "PetImages",
        "`PetImages/Cat/`, `Dog/`, licence beside",
        "wrapper",
        grid("PetImages/{c}/{n}.jpg", ("Cat", "Dog")),
        {"MSR-LA - 3467.docx": "x", "readme[1].txt": "x\n"},
    ),
    Layout(
        "Chest X-ray (Kaggle)",
        "`chest_xray/train/`, `test/`, `val/`, `__MACOSX/`",
        "wrapper",
        grid("chest_xray/train/{c}/{n}.jpeg", ("NORMAL", "PNEUMONIA"), split=TRAIN)
        | grid("chest_xray/test/{c}/{n}.jpeg", ("NORMAL", "PNEUMONIA"), split=TEST)
        | grid("chest_xray/val/{c}/{n}.jpeg", ("NORMAL", "PNEUMONIA"), split=VAL),
        {"chest_xray/__MACOSX/train/NORMAL/._0.jpeg": "x"},
    ),
    Layout(
        "Intel scenes",
        "`seg_train/seg_train/<class>/`, `seg_test/seg_test/`, `seg_pred/seg_pred/` flat",
        "names of the parts, inner wrappers",
        grid("seg_train/seg_train/{c}/{n}.jpg", ("forest", "sea"), split=TRAIN)
        | grid("seg_test/seg_test/{c}/{n}.jpg", ("forest", "sea"), split=TEST)
        | none("seg_pred/seg_pred/{n}.jpg"),
        left_out=3,
    ),
    Layout(
        "Brain tumour MRI",
        "`Training/<class>/`, `Testing/<class>/`",
        "names of the parts",
        grid("Training/{c}/{n}.jpg", KINDS4, split=TRAIN) | grid("Testing/{c}/{n}.jpg", KINDS4, split=TEST),
    ),
    Layout(
        "Br35H",
        "`yes/`, `no/`, `pred/` flat",
        "a flat folder called pred has no labels",
        grid("{c}/{n}.jpg", ("no", "yes")) | none("pred/{n}.jpg"),
        says="3 images in pred/ have no class",
    ),
    pair("training_set", "test_set", TEST),
    pair("train_set", "val_set", VAL),
    pair("train_images", "test_images", TEST),
    pair("train", "dev", VAL),
    pair("train", "eval", TEST),
    pair("train", "holdout", TEST),
    pair("train2017", "val2017", VAL),
    pair("imagenet_train", "imagenet_val", VAL),
    Layout(
        "Plant Seedlings (Kaggle)",
        "`train/<class>/`, `test/` flat, `sample_submission.csv`",
        "a flat test has no labels",
        grid("train/{c}/{n}.png", ("Charlock", "Cleavers")) | none("test/{n}.png"),
        {"sample_submission.csv": rows("file,species", (f"{n}.png,Charlock" for n in range(3)))},
        left_out=3,
    ),
    Layout(
        "State Farm (Kaggle)",
        "`imgs/train/c0/`, `imgs/test/` flat, `driver_imgs_list.csv`",
        "wrapper, flat test",
        grid("imgs/train/{c}/img_{c}{n}.jpg", ("c0", "c1")) | none("imgs/test/img_t{n}.jpg"),
        {"driver_imgs_list.csv": "subject,classname,img\np002,c0,img_c00.jpg\n"},
        left_out=3,
    ),
    Layout(
        "train doubled",
        "`train/train/<class>/`, `test/test/` flat",
        "inner wrappers, flat test",
        grid("train/train/{c}/{n}.jpg", CD) | none("test/test/{n}.jpg"),
        left_out=3,
    ),
    Layout(
        "split in each class",
        "`<class>/train/`, `<class>/test/`",
        "split inside the class",
        grid("{c}/train/{n}.jpg", CD, split=TRAIN) | grid("{c}/test/{n}.jpg", CD, split=TEST),
    ),
    Layout(
        "Caltech-101",
        "`101_ObjectCategories/<class>/` with `BACKGROUND_Google`",
        "Caltech's clutter is no class",
        grid("101_ObjectCategories/{c}/image_{n}.jpg", ("Faces", "accordion"))
        | none("101_ObjectCategories/BACKGROUND_Google/image_{n}.jpg"),
        says="BACKGROUND_Google is no class",
    ),
    Layout(
        "Stanford Dogs",
        "`Images/<wnid-breed>/`, `Annotation/<wnid-breed>/` without suffixes",
        "wrapper",
        grid("Images/{c}/{c}_{n}.jpg", ("n02085620-Chihuahua", "n02085782-Japanese_spaniel")),
        {"Annotation/n02085620-Chihuahua/n02085620_0": "<annotation/>"},
    ),
    Layout(
        "AwA2",
        "`Animals_with_Attributes2/JPEGImages/<class>/`, `classes.txt`",
        "wrappers",
        grid("Animals_with_Attributes2/JPEGImages/{c}/{c}_{n}.jpg", ("antelope", "bat")),
        {"Animals_with_Attributes2/classes.txt": "1\tantelope\n2\tbat\n"},
    ),
    Layout(
        "PACS",
        "`PACS/<domain>/<class>/`",
        "refused: classes or domains? `--classes-at 3`",
        {f"PACS/{d}/{c}/{n}.jpg": (c, "") for d in ("art_painting", "photo", "sketch") for c in CD for n in range(2)},
        flags=("--classes-at", "3"),
        refused="--classes-at 3",
    ),
    Layout(
        "Office-31",
        "`<domain>/images/<class>/`",
        "refused: `--classes-at 3`",
        {f"{d}/images/{c}/{n}.jpg": (c, "") for d in ("amazon", "dslr", "webcam") for c in ("bike", "mug") for n in range(2)},
        flags=("--classes-at", "3"),
        refused="--classes-at 3",
    ),
    Layout(
        "PlantVillage",
        "`plantvillage dataset/color/<class>/`, `grayscale/`, `segmented/`",
        "refused: name one of the three, or `--classes-at 3`",
        {
            f"plantvillage dataset/{d}/{c}/{n}.jpg": (c, "")
            for d in ("color", "grayscale", "segmented")
            for c in ("Apple___scab", "Corn___rust")
            for n in range(2)
        },
        flags=("--classes-at", "3"),
        refused="--classes-at 3",
    ),
    Layout(
        "SUN397",
        "`SUN397/<letter>/<class>[/<sub>]/`, `ClassName.txt`",
        "ClassName.txt",
        {f"SUN397/a/abbey/{n}.jpg": ("abbey", "") for n in range(2)}
        | {f"SUN397/c/church/indoor/{n}.jpg": ("church/indoor", "") for n in range(2)}
        | {f"SUN397/c/church/outdoor/{n}.jpg": ("church/outdoor", "") for n in range(2)},
        {"SUN397/ClassName.txt": "/a/abbey\n/c/church/indoor\n/c/church/outdoor\n"},
    ),
    Layout(
        "nested classes",
        "`<family>/<species>/`",
        "`--classes-at 2`; without it a line proposes it",
        {
            f"{a}/{b}/{n}.jpg": (b, "")
            for a, b in (("felidae", "lion"), ("felidae", "puma"), ("canidae", "wolf"), ("canidae", "fox"))
            for n in range(2)
        },
        flags=("--classes-at", "2"),
    ),
    Layout(
        "ImageNet (Kaggle)",
        "`ILSVRC/Data/CLS-LOC/train/<wnid>/`, `val/` and `test/` flat, `LOC_val_solution.csv`",
        "LOC_val_solution.csv",
        grid("ILSVRC/Data/CLS-LOC/train/{c}/{c}_{n}.JPEG", WN, split=TRAIN)
        | {f"ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_{n}.JPEG": (WN[n % 2], VAL) for n in range(4)}
        | none("ILSVRC/Data/CLS-LOC/test/ILSVRC2012_test_{n}.JPEG"),
        {
            "LOC_val_solution.csv": rows(
                "ImageId,PredictionString", (f"ILSVRC2012_val_{n},{WN[n % 2]} 111 108 230 173 " for n in range(4))
            ),
            "LOC_sample_submission.csv": rows(
                "ImageId,PredictionString", (f"ILSVRC2012_test_{n},{WN[0]} 1 1 5 5" for n in range(3))
            ),
            "LOC_synset_mapping.txt": f"{WN[0]} tench\n{WN[1]} goldfish\n",
        },
        left_out=3,
    ),
    Layout(
        "Tiny ImageNet",
        "`train/<wnid>/images/`, `val/images/` flat, `val/val_annotations.txt`",
        "val_annotations.txt",
        grid("tiny-imagenet-200/train/{c}/images/{c}_{n}.JPEG", WN, split=TRAIN)
        | {f"tiny-imagenet-200/val/images/val_{n}.JPEG": (WN[n % 2], VAL) for n in range(4)}
        | none("tiny-imagenet-200/test/images/test_{n}.JPEG"),
        {
            "tiny-imagenet-200/val/val_annotations.txt": rows(
                "", (f"val_{n}.JPEG\t{WN[n % 2]}\t0\t32\t44\t62" for n in range(4))
            ),
            "tiny-imagenet-200/wnids.txt": "\n".join(WN),
            "tiny-imagenet-200/words.txt": f"{WN[0]}\ttench\n{WN[1]}\tgoldfish\n",
            f"tiny-imagenet-200/train/{WN[0]}/{WN[0]}_boxes.txt": f"{WN[0]}_0.JPEG\t0\t10\t63\t58\n",
        },
        left_out=3,
    ),
    Layout(
        "GTSRB (Kaggle)",
        "`Train/<0…42>/`, `Test/` and `Meta/` flat, `Test.csv`",
        "Test.csv",
        grid("Train/{c}/{c}_{n}.png", ("0", "1"), split=TRAIN)
        | {f"Test/0000{n}.png": (str(n % 2), TEST) for n in range(4)}
        | none("Meta/{n}.png", 2),
        {
            "Test.csv": rows("Width,Height,Roi.X1,ClassId,Path", (f"53,54,6,{n % 2},Test/0000{n}.png" for n in range(4))),
            "Train.csv": rows(
                "Width,Height,Roi.X1,ClassId,Path", (f"53,54,6,{c},Train/{c}/{c}_{n}.png" for c in "01" for n in range(3))
            ),
        },
        left_out=2,
    ),
    Layout(
        "Food-101",
        "`images/<class>/`, `meta/train.txt`, `meta/test.txt` without suffixes",
        "the publisher's split lists",
        grid("food-101/images/{c}/{c}{n}.jpg", ("apple_pie", "sushi"), 3, TRAIN)
        | grid("food-101/images/{c}/{c}{n}.jpg", ("apple_pie", "sushi"), 1, TEST, 3),
        {
            "food-101/meta/train.txt": rows("", (f"{c}/{c}{n}" for c in ("apple_pie", "sushi") for n in range(3))),
            "food-101/meta/test.txt": rows("", (f"{c}/{c}3" for c in ("apple_pie", "sushi"))),
            "food-101/meta/classes.txt": "apple_pie\nsushi\n",
            "food-101/meta/labels.txt": "Apple pie\nSushi\n",
        },
    ),
    Layout(
        "DTD",
        "`images/<class>/`, `labels/train1.txt` … `test10.txt`",
        "the first of the publisher's splits",
        grid("dtd/images/{c}/{c}_{n}.jpg", ("banded", "dotted"), 2, TRAIN)
        | grid("dtd/images/{c}/{c}_{n}.jpg", ("banded", "dotted"), 1, VAL, 2)
        | grid("dtd/images/{c}/{c}_{n}.jpg", ("banded", "dotted"), 1, TEST, 3),
        {
            f"dtd/labels/{part}{k}.txt": rows(
                "", (f"{c}/{c}_{(n + k - 1) % 4}.jpg" for c in ("banded", "dotted") for n in numbers)
            )
            for k in (1, 2, 10)
            for part, numbers in (("train", (0, 1)), ("val", (2,)), ("test", (3,)))
        }
        | {"dtd/labels/labels_joint_anno.txt": "banded/banded_0.jpg banded dotted\n"},
        says="2 more such splits are not used",
    ),
    Layout(
        "MIT Indoor 67",
        "`Images/<class>/`, `TrainImages.txt`, `TestImages.txt`",
        "the publisher's split lists",
        grid("Images/{c}/{n}.jpg", ("airport", "kitchen"), 3, TRAIN)
        | grid("Images/{c}/{n}.jpg", ("airport", "kitchen"), 1, TEST, 3),
        {
            "TrainImages.txt": rows("", (f"{c}/{n}.jpg" for c in ("airport", "kitchen") for n in range(3))),
            "TestImages.txt": rows("", (f"{c}/3.jpg" for c in ("airport", "kitchen"))),
        },
    ),
    Layout(
        "CUB-200-2011",
        "`images/<number.class>/`, `images.txt`, `image_class_labels.txt`, `classes.txt`, `train_test_split.txt`",
        "CUB's lists",
        grid("CUB/images/{c}/{c}_{n}.jpg", ("001.Auk", "002.Owl"), 2, TRAIN)
        | grid("CUB/images/{c}/{c}_{n}.jpg", ("001.Auk", "002.Owl"), 1, TEST, 2),
        {
            "CUB/images.txt": rows(
                "", (f"{i * 3 + n + 1} {c}/{c}_{n}.jpg" for i, c in enumerate(("001.Auk", "002.Owl")) for n in range(3))
            ),
            "CUB/image_class_labels.txt": rows("", (f"{i * 3 + n + 1} {i + 1}" for i in range(2) for n in range(3))),
            "CUB/classes.txt": "1 001.Auk\n2 002.Owl\n",
            "CUB/train_test_split.txt": rows("", (f"{i * 3 + n + 1} {int(n < 2)}" for i in range(2) for n in range(3))),
        },
    ),
    Layout(
        "Oxford-IIIT Pet",
        "`images/<Class>_<n>.jpg` flat, `annotations/trainval.txt`, `test.txt`, `trimaps/`",
        "the publisher's lists; classes by the names",
        {f"images/{c}_{n}.jpg": (c, TRAIN if n < 2 else TEST) for c in ("Abyssinian", "great_pyrenees") for n in range(3)}
        | {f"annotations/trimaps/{c}_{n}.png": None for c in ("Abyssinian", "great_pyrenees") for n in range(3)},
        {
            "annotations/trainval.txt": rows(
                "", (f"{c}_{n} {i + 1} {i + 1} 1" for i, c in enumerate(("Abyssinian", "great_pyrenees")) for n in range(2))
            ),
            "annotations/test.txt": rows(
                "", (f"{c}_2 {i + 1} {i + 1} 1" for i, c in enumerate(("Abyssinian", "great_pyrenees")))
            ),
            "annotations/list.txt": "#Image CLASS-ID SPECIES BREED ID\nAbyssinian_0 1 1 1\n",
        },
        says="images in no list",
    ),
    Layout(
        "Oxford-IIIT Pet, images alone",
        "`<Class>_<n>.jpg` flat",
        "refused: `--label-from '^(.+)_[0-9]+$'`",
        {f"{c}_{n}.jpg": (c, "") for c in ("Abyssinian", "great_pyrenees") for n in range(3)},
        flags=("--label-from", "^(.+)_[0-9]+$"),
        refused="--label-from '^(.+)_[0-9]+$'",
    ),
    Layout(
        "Dogs vs. Cats (Kaggle)",
        "`train/cat.0.jpg` flat, `test1/1.jpg`",
        "refused: `--label-from '^(.+)[.][0-9]+$'`",
        {f"train/{c}.{n}.jpg": (c, "") for c in CD for n in range(3)} | none("test1/{n}.jpg"),
        flags=("--label-from", "^(.+)[.][0-9]+$"),
        refused="--label-from '^(.+)[.][0-9]+$'",
        left_out=3,
    ),
    Layout(
        "COIL-100",
        "`coil-100/obj1__0.png` flat",
        "refused: `--label-from`",
        {f"coil-100/obj{c}__{n}.png": (f"obj{c}", "") for c in (1, 2) for n in (0, 5, 10)},
        flags=("--label-from", "^(.+)__[0-9]+$"),
        refused="--label-from",
    ),
    Layout(
        "FGVC-Aircraft",
        "`images/` flat, `images_variant_train.txt`, `images_family_…`",
        "refused: which list? `--columns label=variant`",
        {f"data/images/{n}.jpg": (("707-320", "Falcon 2000")[n % 2], (TRAIN, VAL, TEST)[n // 2]) for n in range(6)},
        {
            f"data/images_{level}_{part}.txt": rows("", (f"{n} {names[n % 2]}" for n in numbers))
            for level, names in (("variant", ("707-320", "Falcon 2000")), ("family", ("Boeing 707", "Falcon 2000")))
            for part, numbers in (("train", (0, 1)), ("val", (2, 3)), ("test", (4, 5)))
        },
        flags=("--columns", "label=variant"),
        refused="--columns label=",
        code=2,
    ),
    Layout(
        "Flowers-102",
        "`jpg/image_00001.jpg`, `imagelabels.mat`",
        "refused: Matlab's labels",
        none("jpg/image_{n}.jpg"),
        {"imagelabels.mat": "MATLAB 5.0", "setid.mat": "MATLAB 5.0"},
        refused="imagelabels.mat",
    ),
    Layout(
        "MVTec AD",
        "`bottle/train/good/`, `bottle/test/broken/`, `bottle/ground_truth/`",
        "refused: test has classes that train lacks",
        {
            f"{o}/{p}/{n}.png": None
            for o in ("bottle", "cable")
            for p in ("train/good", "test/good", "test/broken", "ground_truth/broken")
            for n in range(2)
        },
        refused="split inside",
    ),
    Layout(
        "images and masks",
        "`images/`, `masks/` flat",
        "refused: masks",
        none("images/{n}.png") | none("masks/{n}.png"),
        refused="called like images",
    ),
    Layout(
        "flat train and test",
        "`train/`, `test/` flat",
        "refused: no classes",
        none("train/{n}.jpg", 8) | none("test/{n}.jpg"),
        refused="called like",
    ),
    Layout(
        "YOLO export",
        "`train/images/`, `train/labels/*.txt`, `data.yaml`",
        "refused: no classes",
        none("train/images/{n}.jpg") | none("valid/images/{n}.jpg"),
        {"data.yaml": "nc: 2\n", **{f"train/labels/{n}.txt": "0 0.5 0.5 0.1 0.1\n" for n in range(3)}},
        refused="called like",
    ),
    Layout(
        "Roboflow folders",
        "`train/<class>/`, `valid/`, `test/`, `README.roboflow.txt`",
        "parts of a split",
        grid("train/{c}/{n}.jpg", CD, split=TRAIN)
        | grid("valid/{c}/{n}.jpg", CD, split=VAL)
        | grid("test/{c}/{n}.jpg", CD, split=TEST),
        {"README.roboflow.txt": "x\n", "README.dataset.txt": "x\n"},
    ),
    Layout(
        "metadata.csv",
        "`train/*.jpg`, `train/metadata.csv`, `test/…`",
        "metadata.csv",
        {f"{s}/{n}.jpg": (CD[n % 2], s) for s in (TRAIN, TEST) for n in range(4)},
        {f"{s}/metadata.csv": rows("file_name,label", (f"{n}.jpg,{CD[n % 2]}" for n in range(4))) for s in (TRAIN, TEST)},
    ),
    Layout(
        "metadata.jsonl",
        "`images/*.jpg`, `metadata.jsonl`",
        "metadata.jsonl",
        {f"images/{n}.jpg": (CD[n % 2], "") for n in range(4)},
        {"metadata.jsonl": rows("", (json.dumps({"file_name": f"images/{n}.jpg", "label": CD[n % 2]}) for n in range(4)))},
    ),
    Layout(
        "a zip file",
        "`animals.zip` of class folders",
        "refused: the command that unpacks",
        grid("{c}/{n}.jpg", CD),
        archive="animals.zip",
        data="animals.zip",
        refused="unzip -q",
        code=2,
    ),
    Layout(
        "a tar.gz file",
        "`animals.tar.gz` in a folder",
        "refused: the command that unpacks",
        grid("{c}/{n}.jpg", CD),
        archive="animals.tar.gz",
        refused="tar -xf",
        code=1,
    ),
]
