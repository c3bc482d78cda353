# make quickstart   environment, then a whole run on a synthetic registry; opens nothing, says where the report is
# make test         environment with the test tools, then every test
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
BACKEND ?= jax
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# Large pages for malloc: XLA's CPU backend allocates its temporaries anew for every step, and small pages cost it up to
# half of its speed (docs/measurements.md).
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: env env-dev quickstart smoke study test lint bench report

env: $(VENV)/.ready
env-dev: $(VENV)/.ready-dev

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than Python 3.11; give another: make PYTHON=python3.11 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.ready: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e ".[jax]"
	@touch $@

$(VENV)/.ready-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e ".[jax,dev]"
	@touch $@ $(VENV)/.ready

quickstart: env
	$(BIN)/python -m launch.train --config=configs/quickstart.py --backend=$(BACKEND) --workdir=runs/quickstart --progress

smoke: env
	$(BIN)/python -m launch.train --config=configs/smoke.py --backend=$(BACKEND) --workdir=runs/smoke --progress

study: env
	$(BIN)/python -m launch.train --config=configs/synthetic_study.py --backend=$(BACKEND) --workdir=runs/synthetic_study --progress

test: env-dev
	$(BIN)/python -m pytest

lint: env-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: env
	$(BIN)/python -m benchmarks.group_layout
	$(BIN)/python -m benchmarks.learner
	$(BIN)/python -m benchmarks.rollout
	$(BIN)/python -m benchmarks.data
