# `make demo` trains and `make check` tests: both make an environment first and install what they need. The others take minutes or hours.
.PHONY: demo check docs bench bench-images bench-train gpu ray scale claims mutants ablations

PYTHON ?= python3
VENV ?= $(or $(VIRTUAL_ENV),.venv)
# TORCH=cpu installs PyTorch's CPU build. PIP: further arguments of pip install, as in PIP="-c .ci/oldest.txt".
TORCH ?=
PIP ?=
IN = . $(VENV)/bin/activate &&

demo: $(VENV)/.oneloop  # one training on drawings that come with the package
	$(IN) accelerate launch --config_file accelerate_config.yaml recipes/cifar2.py --data synthetic --epochs 20
	@echo "Open report.html in this folder. The same command resumes a run that was killed, and tells the result of a finished one."

check: $(VENV)/.oneloop-test  # what CI runs
	$(IN) ruff check .
	$(IN) mypy nets launch oneloop & types=$$!; $(IN) pytest && wait $$types

docs: $(VENV)/.oneloop-test  # the pages of docs/ as a site in build/site; every link is checked
	$(IN) mkdocs build --strict --quiet
	@echo "Open build/site/index.html."

$(VENV)/.oneloop $(VENV)/.oneloop-test: setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}; make PYTHON=python3.12 …")'
	@[ -n "$(TORCH)" ] || [ "$$(uname)" != Linux ] || command -v nvidia-smi > /dev/null || echo \
		"No NVIDIA GPU found. PyTorch's default build for Linux brings CUDA all the same: 3 GB to download, 6 GB on disk, some minutes." \
		"Without CUDA: make $(MAKECMDGOALS) TORCH=cpu"
	[ -x $(VENV)/bin/python ] || $(PYTHON) -m venv $(VENV)
	@$(IN) pip install --quiet --disable-pip-version-check --upgrade pip  # that of Python 3.11 reads 3 GB twice: 20 s more
	$(if $(filter cpu,$(TORCH)),$(IN) pip install --quiet torch torchvision --index-url https://download.pytorch.org/whl/cpu)
	$(IN) pip install --quiet --disable-pip-version-check --no-compile $(PIP) -e $(if $(findstring test,$@),".[test]",.)
	@# On all cores, where pip uses one. Without what is not imported; some files are for another Python.
	@$(IN) python -m compileall -qq -j 0 -x '/(tests|transformers/models/(?!auto|encoder_decoder).*|pip|networkx|lexers|setuptools|mypy)/' $(VENV)/lib || true
	@touch $@

bench:  # about 2 minutes; keep the machine idle meanwhile
	python benchmarks/speed.py

bench-images:  # JPEG files to batches, beside other loaders and the build at AGAINST; keep the machine idle meanwhile
	python benchmarks/images.py $(if $(AGAINST),--against $(AGAINST)) $(if $(PHOTOS),--photos $(PHOTOS))

bench-train:  # photographs to a trained net, beside a plain loop, timm's train.py at TIMM and the build at AGAINST; a quiet machine; 15 minutes
	python benchmarks/train_wall.py $(if $(TIMM),--timm $(TIMM)) $(if $(AGAINST),--against $(AGAINST)) $(if $(PHOTOS),--photos $(PHOTOS))

gpu:  # all that only a GPU can show: tests, verify, speed; some minutes
	python benchmarks/gpu.py

ray:  # a cluster of two machines on this one, one of them lost; pip install ray first; a quiet machine; 3 minutes
	pytest -n 0 tests/test_sweep_ray.py

scale:  # what a network costs a step, over shaped links, beside a model: as root on Linux; under 8 minutes
	python benchmarks/scale.py

mutants:  # each hand-written fault against the tests that should notice it; some minutes
	python benchmarks/mutants.py

ablations:  # the table and the plot of docs/training.md; half an hour on 2 cores; resumes where it stopped
	oneloop sweep recipes/ablations.py --data $(DATA) --config_file launch/gpu.yaml --threads 1 --at-once 2 --seed 1 2 3 4 5 \
		--method none smoothing mixup cutmix crop ema cosine adamw muon
	oneloop compare runs/ablations --against none

DATA ?= hub
claims:  # reproduces the documents' numbers and writes docs/results.md; hours on a CPU; resumes where it stopped
	python benchmarks/claims.py --data $(DATA)
