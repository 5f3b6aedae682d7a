# Two commands do everything: `make demo` (set up, then poses of two photographs) and `make test` (set up, then every check).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_OUT := runs/demo
# Files of tests side by side, each in one process: what a file compiles is shared by its tests.
WORKERS := -n auto --maxprocesses 4 --dist loadfile

.PHONY: help setup demo test quick pytest lint types imports format clean

help:
	@echo "make demo    set up, then run the main job on two photographs"
	@echo "make test    set up, then run every check"
	@echo "make quick   the tests that take less than a few seconds each"
	@echo "make format  rewrite the code in the project's format"
	@echo "make clean   remove what these commands made"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "rmpe_jax needs Python 3.11 or newer; name one with: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# $(call install,EXTRAS): with uv where it is on the PATH, else with pip.
install = if command -v uv >/dev/null; then uv pip install -q --python $(BIN)/python -c constraints.txt -e '.[$(1)]'; \
          else $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[$(1)]'; fi

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	@echo "setting up in $(VENV) ..."
	@$(call install,demo)
	@touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(BIN)/python
	@echo "setting up in $(VENV) ..."
	@$(call install,demo$(comma)data$(comma)fit$(comma)export$(comma)test)
	@touch $@ $(VENV)/.demo

comma := ,

setup: $(VENV)/.test

demo: $(VENV)/.demo
	@$(BIN)/python experiments/demo_pictures.py | \
	  xargs $(BIN)/rmpe predict --boxes experiments/demo_boxes.json --out $(DEMO_OUT)
	@echo "look at: $$(ls $(DEMO_OUT)/*.jpg | tr '\n' ' ')"

test: lint types imports pytest

pytest: $(VENV)/.test
	$(BIN)/python -m pytest -q $(WORKERS)

quick: $(VENV)/.test
	$(BIN)/python -m pytest -q $(WORKERS) -m 'not slow'

lint: $(VENV)/.test
	$(BIN)/ruff format --check -q .
	$(BIN)/ruff check -q .

types: $(VENV)/.test
	$(BIN)/basedpyright --warnings

imports: $(VENV)/.test
	$(BIN)/lint-imports

format: $(VENV)/.test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) runs .pytest_cache .ruff_cache .hypothesis .import_linter_cache
