#!/usr/bin/env bash
# torch 2.14.1 imports its compiler (torch._dynamo, with sympy and torch.distributed.tensor) when the first optimizer is made, and
# torchvision 0.29.1 when it is imported, also where nothing is compiled: a second and about 150 MiB for a process of a few lines.
#
# Seen (torch 2.14.1, torchvision 0.29.1, Python 3.11, Linux; 2-core AMD EPYC)
#   after `import torch`:             without the compiler
#   after torch.optim.SGD(…):         with it: 1.0 s, 892 modules, 151 MiB more
#   after `import torchvision`:       with it
# For oneloop: `oneloop predict` keeps torchvision from importing it until it is used (launch/lazy.py), which is 1.2 s of 2.9. A training
# makes an optimizer: the modules are part of its memory in docs/speed.md.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet --disable-pip-version-check "torch==2.14.1" "torchvision==0.29.1" numpy 2> >(grep -v ignored >&2)
"$place/venv/bin/python" - <<'P'
import sys
import torch

sys.exit("torch._dynamo" in sys.modules)
P
"$place/venv/bin/python" - <<'P'
import resource
import sys
import time

import torch

modules, memory, began = len(sys.modules), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
seconds, more = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
imported = "torch._dynamo" in sys.modules and "sympy" in sys.modules
print(f"torch {torch.__version__}, an optimizer: compiler imported: {imported}; {seconds:.1f} s, {len(sys.modules) - modules} modules, "
      f"{more // 1024} MiB more")
sys.exit(not imported or more < 50 << 10)
P
"$place/venv/bin/python" - <<'P'
import sys

import torch
import torchvision

print(f"torchvision {torchvision.__version__}, imported: compiler imported: {'torch._dynamo' in sys.modules}")
sys.exit("torch._dynamo" not in sys.modules)
P
