# make demo   sets everything up and runs a pretrained network split between two processes
# make test   sets everything up, checks style and types, and runs the tests
# make check  the same, with what is already set up
# make bench  prints ratios measured in one run, writes build/bench.json (ONLY=name for one part)
# make clean  removes what the targets above made

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
ONLY ?=

.PHONY: demo test check style types unit bench clean

demo: $(READY)
	$(BIN)/python scripts/demo.py

test: check

check: style types unit

style: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/mypy

unit: $(READY)
	$(BIN)/pytest

bench: $(READY)
	$(BIN)/python scripts/bench.py $(if $(ONLY),--only $(ONLY))

# One install for every target: the package itself in place, with all that demo and tests use.
$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "SplitRT builds with Python 3.10 or newer; try make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
