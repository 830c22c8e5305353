# make demo: set up, run the whole method on the embedded data.   make test: set up, run all tests.
# make experiments: every baseline, at five numbers of labels.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Tests share few cores with each other; more threads than cores make all of them wait.
export OMP_NUM_THREADS = 1

.PHONY: setup demo experiments test unit slow cluster-tests lint bench bench-read bench-pack \
	bench-submit cluster cluster-down

setup: $(VENV)/.installed

# A stamp of the files that say what is installed: a second call does nothing.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[mpi,dev]'
	touch $@

demo: setup
	$(BIN)/python pipeline/run.py --stage all

# The curve over labels on the embedded data, with every baseline: hours on two cores. The same
# command goes on where it was stopped.
experiments: setup
	$(BIN)/python pipeline/run.py --stage all --sweep labels_small --run-dir runs/experiments \
		--set report.title='Task-informed GAN on MiniCity, over labels'

test: lint unit slow cluster-tests

# Two processes: these tests wait a lot. By files: what the tests of one share is made once.
unit: setup
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m "not slow and not cluster"

slow: setup
	$(BIN)/python -m pytest -m slow

# On a private Slurm that the tests start; skipped with the reason where there is none.
cluster-tests: setup
	$(BIN)/python -m pytest -m cluster

# The same Slurm to try the pipeline by hand: eval "$$(make --silent cluster)", then
# .venv/bin/python pipeline/run.py --stage all --partition testcluster
CLUSTER ?= /tmp/tigan-cluster
cluster:
	@tests/cluster/up.sh $(CLUSTER) --accounting

cluster-down:
	tests/cluster/down.sh $(CLUSTER)

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: bench-read bench-pack bench-submit

# The first time this installs the other formats' libraries into build/bench-venv.
bench-read: setup
	$(BIN)/python tests/bench/read.py

bench-pack: setup
	$(BIN)/python tests/bench/pack.py

bench-submit: setup
	$(BIN)/python tests/bench/submit.py
