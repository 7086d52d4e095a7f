# make ticket    find the first winning ticket        make test    run the tests        make help    everything else
#
# Both make .venv, install the pinned requirements and the package, and skip what is done: stamp files in .venv are as new
# as requirements*.txt and as the build files and C++ sources. The package is installed editable, so that a changed
# Python file is used at once and only a changed C++ file costs a rebuild.

PYTHON ?= python3
VENV ?= .venv
RUN ?= runs/lenet
PYTEST_ARGS ?=
WORKERS ?= auto
BENCH_ARGS ?=
GATE_ARGS ?=
TRITON ?=
GPU_OUT ?= runs/gpu
GPU_MINUTES ?= 9
GPU_PYTHON ?= $(BIN)/python

BIN := $(VENV)/bin
REQUIREMENTS := $(VENV)/.requirements.stamp
PACKAGE := $(VENV)/.package.stamp
TRITONS := $(VENV)/.oldest.stamp $(VENV)/.newest.stamp
COMPILER = $(firstword $(CXX))
JOBS = $(shell getconf _NPROCESSORS_ONLN)
NATIVE = $(MAKE) --no-print-directory -C tests/native
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g1 -O1
SANITIZED := $(CURDIR)/build/sanitize-python
# TRITON=3.6.0: another version than the pinned one, in a folder of its own that comes first.
OTHER_TRITON := $(if $(TRITON),$(abspath $(VENV))/triton-$(TRITON))
ifneq ($(OTHER_TRITON),)
export PYTHONPATH := $(OTHER_TRITON)
endif
PIP = $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup ticket test lint format types native-test arm-test sanitize sanitize-python bench gpu gpu-compile \
	clean distclean FORCE

help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 24

setup: $(PACKAGE) ## make .venv, install the pinned requirements, build and install the package
	@echo "lth_sparse is installed in $(VENV)"

ticket: $(PACKAGE) ## find a winning ticket in LeNet-300-100 (under 5 minutes on 2 cores), resume it, or show it again
	$(BIN)/lth-sparse find lenet --quick --output $(RUN)

# File by file, so that what the tests of a file share is made once. WORKERS=0 runs everything in one process.
test: $(PACKAGE) $(TRITONS) $(OTHER_TRITON) ## run the tests, on all cores (PYTEST_ARGS="-m 'not slow' -x" and the like are passed on; TRITON=3.6.0 takes that Triton)
	$(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 8 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

lint: $(REQUIREMENTS) ## ruff: rules and formatting, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(REQUIREMENTS) ## ruff: format, and fix what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(PACKAGE) ## mypy
	$(BIN)/mypy

native-test: ## the C++ sources and their tests without Python, on every instruction set that runs here
	$(NATIVE) -j$(JOBS) build-openmp build-std
	$(NATIVE) openmp std

arm-test: ## the same cross-compiled for AArch64 (NEON), run by qemu
	$(NATIVE) -j$(JOBS) build-arm
	$(NATIVE) arm

sanitize: ## the same under AddressSanitizer and UndefinedBehaviorSanitizer, then under ThreadSanitizer
	$(NATIVE) -j$(JOBS) build-asan build-tsan
	$(NATIVE) asan tsan

# The package in a folder of its own with a sanitized extension. `pytest` and not `python -m pytest`, which would put
# this folder first. Leaks are not looked for: Python and torch keep what they like until the end.
sanitize-python: $(PACKAGE) ## the kernel tests of pytest with an extension under ASan and UBSan
	CFLAGS="$(SANITIZE)" CXXFLAGS="$(SANITIZE)" LDFLAGS="$(SANITIZE)" \
	$(BIN)/python setup.py -q build --build-base $(SANITIZED) --build-lib $(SANITIZED)/lib
	@grep -q __asan_init $(SANITIZED)/lib/lth_sparse/_C*.so || { echo "lth_sparse: setuptools ignored the compiler flags: the extension is not sanitized" >&2; exit 1; }
	PYTHONPATH=$(SANITIZED)/lib LD_PRELOAD="$$($(COMPILER) -print-file-name=libasan.so) $$($(COMPILER) -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 OMP_WAIT_POLICY=passive \
	$(BIN)/pytest -p no:cacheprovider tests/csrc tests/ops --deselect tests/csrc/test_native.py $(PYTEST_ARGS)

bench: $(PACKAGE) ## time the layers against dense torch (BENCH_ARGS="--csv bench.csv" and the like are passed on)
	$(BIN)/python -m pytest benchmarks $(BENCH_ARGS)

# GPU_PYTHON names another interpreter, one that has the package and what it needs: nothing is installed for it.
gpu: $(if $(filter $(BIN)/python,$(GPU_PYTHON)),$(PACKAGE)) ## on a machine with an NVIDIA GPU: the tests that need one, the benchmarks, plots (GPU_OUT=folder)
	$(GPU_PYTHON) -m lth_sparse.benchmarks.gpu.session --out $(GPU_OUT) --minutes $(GPU_MINUTES) -- $(PYTEST_ARGS)

gpu-compile: $(PACKAGE) $(OTHER_TRITON) ## without a GPU: compile the Triton kernels for several, print registers, memory (GATE_ARGS=--help; TRITON=3.6.0)
	$(BIN)/python tests/kernel_gate_run.py $(GATE_ARGS)

clean: ## remove what was built and cached; .venv and runs/ stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	rm -f lth_sparse/_C*.so $(PACKAGE)
	find lth_sparse kernels tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## clean, and remove .venv; runs/ stays
	rm -rf $(VENV)

$(REQUIREMENTS): requirements.txt
	@command -v $(PYTHON) >/dev/null || { echo "lth_sparse: no '$(PYTHON)': install Python 3.10 or newer (Debian: apt install python3 python3-venv python3-dev)" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "lth_sparse: needs Python 3.10 or newer, and '$(PYTHON)' is $$($(PYTHON) -V): name another one with make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "lth_sparse: '$(PYTHON)' cannot make a virtual environment (Debian: apt install python3-venv)" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { echo "Making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "Installing the pinned requirements into $(VENV) (torch is the large one)"
	@$(PIP) install --requirement requirements.txt
	@touch $@

$(TRITONS): $(VENV)/.%.stamp: $(REQUIREMENTS) requirements-%.txt
	@rm -rf $(VENV)/$*
	@$(PIP) install --quiet --no-deps --target $(VENV)/$* --requirement requirements-$*.txt
	@touch $@

$(abspath $(VENV))/triton-%: | $(REQUIREMENTS)
	@rm -rf $@.part
	@PYTHONPATH= $(PIP) install --quiet --no-deps --target $@.part triton==$*
	@mv $@.part $@

$(PACKAGE): $(REQUIREMENTS) pyproject.toml setup.py lth_sparse/_version.py $(wildcard csrc/*) $(if $(wildcard lth_sparse/_C*.so),,FORCE)
	@command -v $(COMPILER) >/dev/null || { echo "lth_sparse: no C++ compiler '$(COMPILER)' (Debian: apt install g++; or name yours with make CXX=clang++ ...)" >&2; exit 1; }
	@$(BIN)/python -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' || { echo "lth_sparse: Python.h is missing: install the headers of '$(PYTHON)' (Debian: apt install python3-dev)" >&2; exit 1; }
	@echo "Building lth_sparse._C and installing the package into $(VENV)"
	@$(PIP) install --quiet --no-build-isolation --no-deps --editable .
	@touch $@

FORCE:
