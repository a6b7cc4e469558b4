# `make` lists the targets. Those that need it make .venv first, with all that the project uses.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help demo test test-all docs mutants lint format bench clean

help:  ## this list
	@awk -F ':.*  ## ' '/^[a-z-]+:.*  ## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(STAMP)  ## fine-tune the built-in demo: a model, a log and pictures in runs/demo
	rm -rf runs/demo
	$(BIN)/zerograd train --output_dir runs/demo

test: lint  ## lint, types, and the tests that take five minutes on two cores
	$(BIN)/pytest -q -n 2 -m "not slow"

test-all: $(STAMP)  ## the tests that `make test` leaves out: statistics, full products, long runs, the wheel
	$(BIN)/pytest -q -n 2 -m slow

docs: $(STAMP)  ## the documentation site, in site/; a warning is an error
	$(BIN)/mkdocs build --strict

mutants: $(STAMP)  ## deliberate faults, one by one: which of them do the tests let live? (an hour)
	$(BIN)/python scripts/mutants.py

lint: $(STAMP)  ## format, lint and types, nothing changed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP)  ## format, and mend what lint can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP)  ## the time of a step
	$(BIN)/python benchmarks/step.py

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

clean:  ## remove .venv, build, site and runs/demo
	rm -rf $(VENV) build site runs/demo
