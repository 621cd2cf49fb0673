# Everything runs in .venv, which the first target that needs it makes.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt

.PHONY: demo test test-fast lint types docs format clean

demo: .venv/demo-installed  ## the main job on an embedded default, two to five minutes
	$(BIN)/tensornet demo --out demo

test: .venv/dev-installed  ## the whole suite, slow tests and code blocks of the docs included
	$(BIN)/python -m pytest -n 2

test-fast: .venv/dev-installed
	$(BIN)/python -m pytest -n 2 -m "not slow"

lint: .venv/dev-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: .venv/dev-installed
	$(BIN)/mypy

docs: .venv/dev-installed  ## the site, in site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: .venv/dev-installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv site demo build *.egg-info

.venv/demo-installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) torch==2.13.0
	$(PIP) --editable '.[demo]'
	touch $@

# torchvision and timm lie in a folder of their own, which only the tests put on the path: without its compiled operators,
# torchvision cannot be imported before the tests declare them, and other packages would try.
.venv/dev-installed: .venv/demo-installed
	$(PIP) --editable '.[dev,docs]'
	$(PIP) --no-deps --target .venv/vision --upgrade torchvision timm
	touch $@
