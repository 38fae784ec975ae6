# Everything a fresh machine needs, behind two words: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test bench check clean

demo: $(VENV)/.installed ## the worker on a generated drifting stream, with its page
	$(BIN)/streammaml demo $(ARGS)

test: $(VENV)/.installed-test ## the whole suite
	$(BIN)/python -m pytest $(ARGS)

bench: $(VENV)/.installed-test ## speed, side by side with its peers
	$(BIN)/python -m tests.benchmarks.speed $(ARGS)

check: $(VENV)/.installed-test ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "streammaml needs Python 3.11+: make PYTHON=python3.11 …")'
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
