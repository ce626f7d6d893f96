# Two commands for a newcomer:
#   make demo   environment, installation and the whole road of recipes/quickstart.yaml
#   make test   environment, installation and every test
# And one for who doubts docs/performance.md:
#   make bench  the training benchmark against its peers, about an hour, written into that page
SHELL := /bin/bash
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test bench lint format clean

demo: $(VENV)/.installed
	$(BIN)/tunesmith run recipes/quickstart.yaml

test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/training.py

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(VENV)/.installed: pyproject.toml constraints.txt scripts/setup.sh
	scripts/setup.sh $(VENV) .
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt scripts/setup.sh
	scripts/setup.sh $(VENV) '.[dev]'
	touch $@ $(VENV)/.installed

clean:
	rm -rf .venv build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
