# `make check` is what CI runs; the others take minutes and say so.
.PHONY: check bench gpu claims mutants

check:
	ruff check .
	pytest

bench:  # about 2 minutes; leave the machine alone meanwhile
	python benchmarks/speed.py

gpu:  # the tests marked gpu and the bench, on a machine with a GPU
	pytest -m gpu
	python benchmarks/speed.py

mutants:  # every hand-written fault, each with the tests that should notice it; some minutes
	python benchmarks/mutants.py

DATA ?= hub
claims:  # the documents' numbers, hours on a CPU; goes on where it stopped; writes docs/results.md
	python benchmarks/claims.py --data $(DATA)
