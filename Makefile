# `make quickstart` and `make test` bring their own environment: Python >= 3.11 is all they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: quickstart test test-slow gpu-check tour lint types clean

$(VENV)/ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("edgekd needs Python >= 3.11") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --editable '.[dev]'
	touch $@

quickstart: $(VENV)/ready
	$(BIN)/python recipes/quickstart/digits.py runs/digits
	$(BIN)/edgekd run recipes/quickstart.toml --data runs/digits/heldout
	@echo 'Open the environment with:  . $(BIN)/activate'

test: $(VENV)/ready
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-slow: $(VENV)/ready
	$(BIN)/python -m pytest -n 2 --dist worksteal -m slow

# DATA holds cifar10/train and cifar10/test as class folders. Ten minutes at most; the same command goes on.
gpu-check: $(VENV)/ready
	$(BIN)/python -m docs.studies.gpu.run $(DATA) runs/gpu docs/studies/gpu

tour: $(VENV)/ready
	$(BIN)/python -m docs.studies.tour.run README.md docs/studies/tour/tour.txt

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m docs.architecture --sizes

types: $(VENV)/ready
	$(BIN)/mypy

clean:
	rm -rf $(VENV)
