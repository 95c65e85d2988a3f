# Everything starts from a bare machine: `make demo` and `make test` set up what they need and can be run again.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# Two workers with one thread each: OpenMP teams that share two cores spin against each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: setup demo test nightly lint types bench-kernels bench-pool bench-steps bench-ranks bench-methods bench-evaluation dry-run-check profile results-digits results-ablations results-precision kill-test steady-test launches gpu-check gpu-rehearsal gpu-packages clean

setup: $(STAMP)

$(STAMP): pyproject.toml setup.py $(shell find csrc -type f)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip "setuptools>=77" wheel ninja
	$(BIN)/python -m pip install -q "torch>=2.11,<2.14"
	$(BIN)/python -m pip install -q --no-build-isolation -e ".[dev]"
	touch $@

demo: setup
	$(BIN)/dfkd-fast train nayer --preset digits

test: setup
	$(PYTEST) -n 2 --dist loadfile tests

# All of it: with the tests that take too long for every change.
nightly: setup
	$(PYTEST) -n 2 --dist loadfile tests --nightly

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

# The operators against what others do, on the GPU if there is one; appends to bench/results/kernels-<device>.jsonl.
bench-kernels: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -c bench/kernels/pytest.ini bench/kernels

# The pool's streams, sizes, costs and memory; appends to bench/results/pool-*.jsonl and draws pool-sizes.png. Takes 3 GB
# of memory and as much of disk for a while.
bench-pool: setup
	OMP_NUM_THREADS=1 $(BIN)/python bench/pool/run.py

# Our steps against the released codes' style on one thread, interleaved; appends to bench/results/steps-cpu.jsonl. About ten
# minutes on an idle core.
bench-steps: setup
	OMP_NUM_THREADS=1 $(BIN)/python bench/steps/run.py

# Two data-parallel processes against two independent ones, one core each; appends to bench/results/ranks-cpu.jsonl. Wall
# time: nothing else may run. About ten minutes.
bench-ranks: setup
	OMP_NUM_THREADS=1 $(BIN)/python bench/ranks.py

# Hours of each method's recipe: ours, the baseline's, the published, the floor; bench/results/methods-<device>.jsonl and .png.
bench-methods: setup
	$(BIN)/dfkd-fast bench methods

# What decodes test images fastest, DALI or Pillow (DALI: pip install -e ".[dali]"); bench/results/evaluation-cpu.jsonl.
bench-evaluation: setup
	OMP_NUM_THREADS=1 $(BIN)/python bench/evaluation.py

# What --dry-run foretells of a run of five minutes, and what it then takes; bench/results/dry-run-<device>.jsonl. On an
# idle machine.
dry-run-check: setup
	OMP_NUM_THREADS=1 $(BIN)/python bench/dry_run_check.py

# Where the time of a step goes: a trace and a table by phase and kernel, in bench/results/profile-<device>/.
profile: setup
	$(BIN)/python bench/profile_steps.py

# Every method on digits over three seeds, and what is left of them without one of their parts: tables in docs/results.md,
# lines in bench/results/digits.jsonl. About an hour each on one core; stopped, they go on where they were.
results-digits: setup
	$(BIN)/python bench/methods/digits.py

results-ablations: setup
	$(BIN)/python bench/methods/digits.py --ablations

# The same in fp32 beside the presets' bf16, one seed of all before the next; about four minutes a run.
results-precision: setup
	$(BIN)/python bench/methods/digits.py --precision fp32

# The table of methods in README.md, from dfkd_fast/catalog.py.
readme: setup
	$(BIN)/python bench/methods/readme.py

# Kill a writer of a pool 200 times at random moments: nothing that it confirmed may be lost.
kill-test: setup
	$(PYTEST) tests/pool/test_kill.py --kills 200

# 10,000 steps of a tiny run: neither the time of a step nor memory may grow.
steady-test: setup
	$(PYTEST) tests/benchmark/test_steady.py --steady-steps 10000 --timeout 0

# Kernels that each captured step launches, and the bytes that they move, counted on a card that is not there: writes
# bench/results/launches.json, the bounds of tests/fake_cuda. Five minutes of processor time; needs a torch without CUDA.
launches: setup
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore tests/fake_cuda/scan.py --table bench/results/launches.json > /dev/null

# On a machine with a GPU and without a network: uses that machine's own Python and torch, installs nothing. Nine minutes
# at most; ARGS="--only train", ARGS=--resume.
gpu-check:
	$(PYTHON) bench/gpu_check.py $(ARGS)

# The same at tiny size on the CPU, everything but the card.
gpu-rehearsal: setup
	OUT_DIR=$(or $(OUT_DIR),build/gpu-rehearsal) $(BIN)/python bench/gpu_check.py --rehearse

# Before that, where there is a network: what the GPU's machine may lack of the tests' packages, for its Python. Take
# build/gpu-packages along with the checkout.
GPU_PYTHON ?= 3.12
gpu-packages:
	$(PYTHON) -m pip install -q --upgrade --no-deps --only-binary=:all: --target build/gpu-packages \
		--python-version $(GPU_PYTHON) --platform manylinux2014_x86_64 \
		tomli_w "tyro<2" docstring_parser typeguard typing_extensions \
		hypothesis sortedcontainers pytest-timeout pytest-xdist execnet

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
