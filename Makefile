# Everything starts from a bare machine: `make demo` and `make test` set up what they need and can be run again.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# Two workers with one thread each: OpenMP teams that share two cores spin against each other.
RUN    := OMP_NUM_THREADS=1 $(BIN)/python
PYTEST := $(RUN) -m pytest

.PHONY: setup demo test lint types bench readme gpu-check gpu-packages clean

setup: $(STAMP)

$(STAMP): pyproject.toml setup.py $(shell find csrc -type f)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip "setuptools>=77" wheel ninja
	$(BIN)/python -m pip install -q "torch>=2.11,<2.14"
	$(BIN)/python -m pip install -q --no-build-isolation -e ".[dev]"
	touch $@

# On digits; with DATA=PATH (CIFAR-10: tars, its own files or class folders) from the ResNet-20 that ships, on one core.
demo: setup
	$(if $(DATA),OMP_NUM_THREADS=1 )$(BIN)/dfkd-fast train nayer $(DEMO)

DEMO = --preset $(if $(DATA),cifar10-demo --data $(DATA) --threads 1,digits-quick)

# SUITE=all is what the project checks; quick is for the edit loop, under a minute; nightly adds the tests that take too
# long for every change.
TEST_all     := tests
TEST_quick   := tests/losses tests/golden tests/test_config.py tests/test_layers.py tests/test_rng.py tests/test_optim.py
TEST_nightly := tests --nightly

# SUITE=NAME of `make bench`. Each appends lines to bench/results/, with the device's name.
# The operators against what others do, on the GPU if there is one.
BENCH_kernels    := $(PYTEST) -c bench/kernels/pytest.ini bench/kernels
# The pool's streams, sizes, costs and memory, and pool-sizes.png. Takes 3 GB of memory and as much of disk for a while.
BENCH_pool       := $(RUN) bench/pool/run.py
# Our steps against the released codes' style on one thread, interleaved. About ten minutes on an idle core.
BENCH_steps      := $(RUN) bench/steps/run.py
# Frozen networks with the statistics loss against hooks, torch.compile and the network without it, 49 networks; stopped,
# it goes on where it was. Compiling them takes hours, and is a pass of its own: bench/frozen/run.py --compile.
BENCH_frozen     := $(RUN) bench/frozen/run.py
# How the cost of a step grows with classes, pixels, batch, processes, depth and pool, and docs/images/scaling.png. Half an
# hour, 3 GB of memory and of disk for a while; stopped, it goes on where it was.
BENCH_scaling    := $(RUN) bench/scaling/run.py
# Two data-parallel processes against two independent ones, one core each. Wall time: nothing else may run. Ten minutes.
BENCH_ranks      := $(RUN) bench/ranks.py
# Hours of each method's recipe: ours, the baseline's, the published, the floor; draws a chart, too.
BENCH_methods    := $(RUN) bench/predict.py
# The generators' forward and backward on one thread: upsample then convolve, and both in one.
BENCH_generator  := $(RUN) bench/generator.py
# What checkpoints, the pool and metrics.jsonl cost, in processor time and syncs; and the table of docs/reliability.md from
# what `make test SUITE=nightly` has found. bench/reliability_race.py OLD NEW races two checkouts, and is run by hand.
BENCH_reliability := $(RUN) bench/reliability_cost.py
BENCH_faults     := $(RUN) bench/reliability.py
# What decodes test images fastest, DALI or Pillow (DALI: pip install -e ".[dali]").
BENCH_evaluation := $(RUN) bench/evaluation.py
# Whether the roofline, with this CPU's rates, gives the step times that all methods have here. Some minutes, one thread.
BENCH_roofline   := $(RUN) bench/roofline/run.py
# Hours of the released codes' style, predicted on the cards that papers name, beside the hours that they print; and the
# tables of predictions in docs/performance.md.
BENCH_published  := $(RUN) bench/roofline/released.py && $(RUN) bench/roofline/report.py
# What --dry-run predicts for a run of five minutes, and what it then takes. On an idle machine.
BENCH_dry-run    := $(RUN) bench/dry_run_check.py
# Equal budgets: ours against the released codes' style, ResNet-56 to ResNet-20, 15 core-minutes a run, 27 runs; stopped,
# it goes on where it was. ARGS="--data DATA --teachers TEACHERS"; with --dry-run behind it, what they take; --docs: tables.
BENCH_race       := $(RUN) bench/race/run.py $(ARGS)
# Where the time of a step goes: a trace and a table by phase and kernel, in bench/results/profile-<device>/.
BENCH_profile    := $(BIN)/python bench/profile_steps.py
# Every method on digits over three seeds; what is left of them without one of their parts; all in fp32. Tables in
# docs/results.md. About an hour on one core for the second, more for the others; stopped, they go on where they were.
BENCH_digits     := $(BIN)/python bench/methods/digits.py
BENCH_ablations  := $(BIN)/python bench/methods/digits.py --ablations
BENCH_precision  := $(BIN)/python bench/methods/digits.py --precision fp32
# Every method's digits-quick preset, seed 0. Half an hour on one core.
BENCH_quick      := $(BIN)/python bench/methods/digits.py --quick
# What each switch of the student (--student-mix, --student-optimizer, --student-schedule) costs a step. Two minutes.
BENCH_switches   := $(RUN) bench/student_switches.py
# Core-seconds until a student of CIFAR-10's ResNet-56 is good, every entry of bench/speedrun/entries; DFKD_TEST_DATA says
# where the data are. Half a day on one core; stopped, it goes on where it was. The rules: docs/speedrun.md.
BENCH_speedrun   := $(RUN) bench/speedrun/run.py
# Kill a writer of a pool 200 times at random moments: nothing that it confirmed may be lost.
BENCH_kill       := $(PYTEST) tests/pool/test_kill.py --kills 200
# 10,000 steps of a tiny run: neither the time of a step nor memory may grow.
BENCH_steady     := $(PYTEST) tests/benchmark/test_steady.py --steady-steps 10000 --timeout 0
# Kernels that each captured step launches, and the bytes that they move, counted on a card that is not there: the bounds
# of tests/fake_cuda. Minutes of processor time; needs a torch without CUDA.
BENCH_launches   := $(RUN) -W ignore tests/fake_cuda/scan.py --table bench/results/launches.json
# What each Triton kernel takes of an sm_80, sm_90 and sm_100, in the same table.
BENCH_registers  := $(RUN) bench/kernels/triton_resources.py --out bench/results/launches.json

choices  = $(patsubst $(1)_%,%,$(filter $(1)_%,$(.VARIABLES)))
chosen   = $(or $($(1)_$(2)),$(error SUITE=$(2): choose one of $(sort $(call choices,$(1)))))

test: SUITE := $(or $(SUITE),all)
test: setup
	$(PYTEST) -n 2 --dist loadfile $(call chosen,TEST,$(SUITE))

bench: setup
	$(call chosen,BENCH,$(SUITE))

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

# The table of methods in README.md, from dfkd_fast/catalog.py.
readme: setup
	$(BIN)/python bench/methods/readme.py

# On a machine with a GPU and without a network: uses that machine's own Python and torch, installs nothing. Nine minutes
# at most; ARGS="--only train", ARGS=--resume. ARGS=--rehearse is the same at tiny size on a CPU, everything but the card.
gpu-check:
	$(PYTHON) bench/gpu_check.py $(ARGS)

# Before that, where there is a network: what the GPU's machine may lack of the tests' packages, for its Python. Take
# build/gpu-packages along with the checkout.
GPU_PYTHON ?= 3.12
gpu-packages:
	$(PYTHON) -m pip install -q --upgrade --no-deps --only-binary=:all: --target build/gpu-packages \
		--python-version $(GPU_PYTHON) --platform manylinux2014_x86_64 \
		"setuptools>=77" ninja \
		tomli_w "tyro<2" docstring_parser typeguard typing_extensions \
		hypothesis sortedcontainers pytest-timeout pytest-xdist execnet

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
