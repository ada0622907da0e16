# Liuli 琉璃. `make chat` builds a ChatGPT on this computer and opens it; `make test` runs all tests.
PYTHON ?= python3
BIN := .venv/bin
PAGE := $(shell find web -type f -not -path '*/node_modules/*' 2>/dev/null)

.PHONY: help chat test mutants bench check clean

help:
	@echo "make chat             build a model (15 minutes) and talk to it in the browser, from the first minutes on"
	@echo "make chat MINUTES=5   the same with another budget"
	@echo "make test             all tests (under 10 minutes); those of the page need Chromium, or LIULI_NO_BROWSER=1"
	@echo "make mutants          break the code of learning from rewards in 17 ways; the tests must notice each (5 minutes)"
	@echo "make check            style, types and size of the code"
	@echo "make bench            speed and quality as docs/benchmarks.md reports them (about two hours)"
	@echo "make bench TEXT=FOLDER SHAKESPEARE=FILE   also on real text (15 minutes more), on tinyshakespeare.txt (80 more)"
	@echo "make clean            remove all that was installed or built, runs and their models too"
	@echo "make help             this list"
	@echo "PYTHON=python3.12     with any of them: the Python (3.11 or newer) to install for, on the first make"

chat: .venv/installed
	$(BIN)/liuli build recipes/laptop.toml --serve $(if $(MINUTES),--minutes $(MINUTES) --out runs/laptop-$(MINUTES)min)

test: .venv/installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

mutants: .venv/installed-test
	$(BIN)/python scripts/mutants.py

check: .venv/installed-test
	$(BIN)/ruff check src tests benchmarks scripts && $(BIN)/ruff format --check src tests benchmarks scripts && $(BIN)/mypy
	$(BIN)/python scripts/count.py

bench: .venv/installed-test
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/decode.py
	$(BIN)/python benchmarks/text.py $(TEXT)
	$(BIN)/python benchmarks/preferences.py
	$(BIN)/python benchmarks/preferences.py --prompt 100 --answer 24
	$(BIN)/liuli build recipes/laptop.toml --out runs/bench/laptop
	$(BIN)/python benchmarks/serving.py runs/bench/laptop/aligned
	$(BIN)/python benchmarks/serving.py 10m --parts load
	$(BIN)/python benchmarks/alignment.py runs/bench/laptop --out runs/bench/alignment
	$(BIN)/python benchmarks/addition.py runs/bench/laptop --out runs/bench/addition
	$(BIN)/liuli build recipes/laptop.toml --minutes 5 --out runs/bench/five
	$(if $(TEXT),$(BIN)/liuli build recipes/laptop.toml --text $(TEXT) --out runs/bench/text)
	$(if $(SHAKESPEARE),$(foreach preset,racer qwen3,$(foreach minutes,3 10,\
		$(BIN)/python benchmarks/shakespeare.py $(SHAKESPEARE) --preset $(preset) --minutes $(minutes) --seeds 0 1 2;)))

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Liuli needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	@$(PYTHON) -m venv .venv || { rm -rf .venv; \
		echo "No .venv could be made. Debian and Ubuntu: sudo apt install python3-venv, then the same make again"; exit 1; }
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
