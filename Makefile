# Every target makes the environment by itself, once: `make` lists the targets.

PYTHON ?= python3
ARGS ?=
# Where torch brings no triton (its CPU build) this one is installed.
OWN_TRITON := 3.8.0
TRITON ?= $(OWN_TRITON)

VENV := .venv
BIN := $(VENV)/bin/python
PIP := $(BIN) -m pip --disable-pip-version-check --no-input --quiet
READY := $(VENV)/.ready
UNFINISHED := $(VENV)/.unfinished
CACHES := build dist *.egg-info .benchmarks .mypy_cache .pytest_cache .ruff_cache

.DEFAULT_GOAL := help
.PHONY: help demo figures test lint bench codegen mutate gpu clean distclean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "PYTHON=python3.12 chooses the interpreter of a new environment; ARGS='...' is handed to the program run."

demo: $(READY) ## train a small network on MNIST, measure every step, draw the figure (3 minutes)
	$(BIN) -m reproductions demo $(ARGS)

figures: $(READY) ## make every figure of reproductions/ and their page; stored runs are not made again (long)
	$(BIN) -m reproductions --out reproductions/results $(ARGS)

# One process a core, 8 at most; a file's tests stay together, because they share what is slow to make. Of the benches
# this runs what they assert, on few elements.
test: $(READY) ## run the tests, and what the benches assert
	$(BIN) -m pytest tests bench --benchmark-disable -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(READY) ## check style, format and types
	$(BIN) -m ruff check .
	$(BIN) -m ruff format --check .
	$(BIN) -m mypy fastgeom

bench: $(READY) ## time everything beside its peers (12 minutes), write bench/results/ and bench/README.md
	@mkdir -p build && rm -f build/bench.json
	$(BIN) -m pytest bench --benchmark-json=build/bench.json $(ARGS)
	$(BIN) -m bench.report build/bench.json

codegen: $(if $(filter $(OWN_TRITON),$(TRITON)),$(READY),.venv-triton-$(TRITON)) ## compile every kernel for four GPUs, check the code
	env -u TRITON_INTERPRET $(if $(filter $(OWN_TRITON),$(TRITON)),$(BIN),.venv-triton-$(TRITON)/bin/python) -m bench.codegen \
		$(if $(filter $(OWN_TRITON),$(TRITON)),--write bench/results/codegen.md) $(ARGS)

mutate: $(READY) ## break kernels and launchers on purpose: each mutant must turn a test red
	$(BIN) -m tests.mutation $(ARGS)

gpu: ## on a machine with a CUDA card: every test and bench that needs one (stops after 8 minutes; installs nothing)
	$(PYTHON) -m bench.gpu $(ARGS)

clean: ## remove what was built and every cache; keeps the environment and runs/
	rm -rf $(CACHES)
	find bench fastgeom kernels reproductions tests -type d -name __pycache__ -prune -exec rm -rf {} +

distclean: clean ## clean, and remove the environment too
	rm -rf $(VENV) .venv-triton-*

# An environment is unfinished until the last line has renamed the mark. One that was interrupted is made again from
# nothing; one that is merely older than pyproject.toml or constraints.txt is brought up to date in place.
$(READY): pyproject.toml constraints.txt
	@command -v "$(PYTHON)" >/dev/null || { \
		echo "fastgeom: no $(PYTHON) found: install Python 3.11 or newer, or name one with PYTHON=..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "fastgeom: $(PYTHON) is no Python 3.11 or newer: name one with PYTHON=..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "fastgeom: $(PYTHON) cannot make environments: install its venv module (Debian: python3-venv)" >&2; exit 1; }
	@echo "fastgeom: installing Python packages into $(VENV), once; this takes some minutes"
	@if test -e $(UNFINISHED) || ! test -x $(BIN); then rm -rf $(VENV); fi
	@mkdir -p $(VENV) && touch $(UNFINISHED)
	@test -x $(BIN) || "$(PYTHON)" -m venv $(VENV)
	@$(PIP) install --constraint constraints.txt setuptools torch
	@$(BIN) -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("triton") is None)' || \
		$(PIP) install triton==$(OWN_TRITON)
	@$(PIP) install --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	@mv $(UNFINISHED) $(READY)

# Another version of triton (make codegen TRITON=3.6.0) has an environment with nothing else in it.
.venv-triton-%:
	rm -rf $@.unfinished
	"$(PYTHON)" -m venv $@.unfinished
	$@.unfinished/bin/python -m pip --disable-pip-version-check --no-input --quiet install triton==$*
	mv $@.unfinished $@
