# `make check` runs what CI runs. The other targets take minutes or hours.
.PHONY: check bench bench-pictures gpu ray scale claims mutants remedies

check:
	ruff check .
	mypy nets launch
	pytest

bench:  # about 2 minutes; keep the machine idle meanwhile
	python benchmarks/speed.py

bench-pictures:  # JPEG files to batches, beside torchvision and timm; some minutes
	python benchmarks/pictures.py

gpu:  # all that only a GPU can show: tests, verify, speed; some minutes
	python benchmarks/gpu.py

ray:  # a cluster of two machines on this one, one of them lost; pip install ray first; a quiet machine; 3 minutes
	pytest -n 0 tests/test_sweep_ray.py

scale:  # what a network costs a step, over shaped links, beside a model: as root on Linux; under 8 minutes
	python benchmarks/scale.py

mutants:  # each hand-written fault against the tests that should notice it; some minutes
	python benchmarks/mutants.py

remedies:  # the table and the picture of docs/training.md; half an hour on 2 cores; resumes where it stopped
	oneloop sweep recipes/remedies.py --data $(DATA) --config_file launch/gpu.yaml --threads 1 --at-once 2 --seed 1 2 3 4 5 \
		--remedy none smoothing mixup cutmix crop ema cosine adamw muon
	oneloop compare runs/remedies --against none

DATA ?= hub
claims:  # reproduces the documents' numbers and writes docs/results.md; hours on a CPU; resumes where it stopped
	python benchmarks/claims.py --data $(DATA)
