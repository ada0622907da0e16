# Liuli 琉璃. `make chat` builds a ChatGPT on this computer and opens it; `make test` runs all tests.
PYTHON ?= python3
BIN := .venv/bin
PAGE := $(shell find web -type f -not -path '*/node_modules/*' 2>/dev/null)

.PHONY: help chat test bench check clean

help:
	@echo "make chat             build a model (15 minutes) and talk to it in the browser, from the first minutes on"
	@echo "make chat MINUTES=5   the same with another budget"
	@echo "make test             all tests (under 10 minutes)"
	@echo "make bench            speed and quality, written to docs/benchmarks.md by hand (about an hour)"

chat: .venv/installed
	$(BIN)/liuli build recipes/laptop.toml --serve $(if $(MINUTES),--minutes $(MINUTES) --out runs/laptop-$(MINUTES)min)

test: .venv/installed-test
	$(BIN)/python -m pytest

check: .venv/installed-test
	$(BIN)/ruff check src tests benchmarks && $(BIN)/ruff format --check src tests benchmarks && $(BIN)/mypy
	$(BIN)/python scripts/count.py

bench: .venv/installed-test
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/decode.py
	$(if $(SHAKESPEARE),$(BIN)/python benchmarks/shakespeare.py $(SHAKESPEARE) --minutes 3 --seeds 0 1 2)

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Liuli needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip

.venv/installed: pyproject.toml hatch_build.py $(PAGE) | .venv/bin/python
	@echo "Installing (PyTorch is large: a few minutes the first time)"
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

.venv/installed-test: .venv/installed
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $@

clean:
	rm -rf .venv runs src/liuli/server/page web/node_modules
