# make run     a line from raw objects to an answer (LINE=digits or LINE=flights)
# make test    all tests, against real servers
# make check   formatter, linter, types, import rule

LINE ?= digits
PYTHON ?= python3
PIP_ARGS ?=
BIN := .venv/bin

.PHONY: run test check benchmarks clean

run: .venv/installed
	$(BIN)/modelmint land $(LINE) --if-empty
	$(BIN)/modelmint run $(LINE)

test: .venv/developer
	$(BIN)/python -m pytest

check: .venv/developer
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_imports.py

benchmarks: .venv/developer
	for name in startup orchestration cleaning training digests determinism replays kills; do $(BIN)/python -m benchmarks.$$name || exit 1; done

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $(PIP_ARGS) -c constraints.txt -e .
	touch $@

.venv/developer: .venv/installed
	$(BIN)/pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv .modelmint
