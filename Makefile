# What can be done with this checkout; `make` alone lists it. It takes Python >= 3.11, make and git.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test faults lint bench packages

VENV ?= .venv
BIN = $(VENV)/bin
# the system's Python first: the users of the SLURM test bed must be able to read it
PYTHON ?= $(shell for p in /usr/bin/python3 python3; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
DEMO := demo$(shell command -v mpiexec >/dev/null && echo ,mpi)

LAMMPS := lammps python3-lammps liblammps-dev # one of the notebooks steers it

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 13

demo: $(VENV)/.has-$(DEMO) ## run the quickstart notebook on four ranks of this machine, and show it
	@$(BIN)/python notebooks/show.py notebooks/quickstart.ipynb

test: packages $(VENV)/.has-test ## lint, then every test; as root with a real SLURM, else it says what is missing
	@$(BIN)/python tests/side_by_side.py

faults: packages $(VENV)/.has-test ## the faults that take minutes to come about: a walltime, a network cut, a lost node
	$(BIN)/python -m pytest tests -m minutes --timeout 900

lint: $(VENV)/.has-test ## style, format, types, and the laws of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.has-test ## the figures, against stock ipyparallel in the same run
	@$(BIN)/python benchmarks/all.py

packages:
	@.ci/install $$(tests/slurm/cluster packages) chromium tmux $(LAMMPS) || echo "Going on without: tests that need them will say so."

$(VENV)/.has-%: pyproject.toml | $(BIN)/pip
	@echo "Installing .[$*] into $(VENV)"
	@timeout --foreground 1800 $(BIN)/python -m pip install -qq --editable '.[$*]'
	@touch $@

$(BIN)/pip:
	@[ -n "$(PYTHON)" ] || { echo "No Python >= 3.11 found. Name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || .ci/install python3-venv
	@timeout --foreground 300 $(PYTHON) -m venv $(VENV)
