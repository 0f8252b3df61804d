#!/usr/bin/env bash
# timm 1.0.31 writes `num_classes` into `model_args` of config.json (timm.models.save_for_hf), and transformers 5.24.0 passes it to timm
# beside the number of labels: the folder that timm writes and reads cannot be loaded by AutoModelForImageClassification.
#
# Seen (timm 1.0.31, transformers 5.24.0, torch 2.14.1, Python 3.11, Linux)
#   as written:           TypeError: … got multiple values for keyword argument 'num_classes'
#   without that entry:   loads, and computes the same logits
# For oneloop: `oneloop publish` leaves the entry out, and loads the folder through both before it is there (launch/publish/folder.py).
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet --disable-pip-version-check "timm==1.0.31" "transformers==5.24.0" "torch==2.14.1" 2> >(grep -v ignored >&2)
HF_HUB_OFFLINE=1 "$place/venv/bin/python" - "$place/net" <<'P'
import json
import sys
from pathlib import Path

import timm
import torch
import transformers
from timm.models import save_for_hf

folder = Path(sys.argv[1])
net = timm.create_model("test_resnet", num_classes=3).eval()
save_for_hf(net, folder, model_config={"label_names": ["a", "b", "c"]}, safe_serialization=True)
config = json.loads((folder / "config.json").read_text())
why = ""
try:
    transformers.AutoModelForImageClassification.from_pretrained(folder)
except TypeError as error:
    why = str(error)
print(f"timm {timm.__version__}, transformers {transformers.__version__}, as written: {why or 'loads'}")
del config["model_args"]["num_classes"]
(folder / "config.json").write_text(json.dumps(config))
again = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
pixels = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    same = torch.allclose(again(pixels).logits, net(pixels), atol=1e-5)
print("without num_classes in model_args:", "the same logits" if same else "other logits")
sys.exit(not ("multiple values" in why and same))
P
