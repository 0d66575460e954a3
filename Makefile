# make run     a line from raw objects to an answer (LINE=digits, fashion, flights, …)
# make test    all tests but those of the slow targets below, against real servers
# make check   formatter, linter, types, import rule
# make fuzz         every operation of the OpenAPI document, valid and not, for ten minutes
# make images       the images of a cluster, with buildah (BASE=python:3.11-slim, BUILD_ARGS=...),
#                   their sizes, and tests: built twice they are the same, and they run
# make faults       kills and outages of the whole stack, a full disk of the store: nothing missed,
#                   nothing twice
# make cluster      clean and train on three machines (network namespaces; root), a worker lost in mid-run
# make slow         the long tests of flows, tasks and the laptop stack: a version replayed with its
#                   libraries installed anew and by changed code, everything killed, more draws
# make production   the chain on PostgreSQL, Redis and TLS Dask gives the version of a laptop; root has
#                   what is missing of these installed from Debian, anybody else is told

LINE ?= digits
PYTHON ?= python3
PIP_ARGS ?=
BIN := .venv/bin

.PHONY: run test check benchmarks fuzz images services production faults cluster slow clean

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
	for name in startup orchestration cleaning training training_memory compression digests products \
	  determinism score replays kills resuming events stack sweep decoding soak writing; \
	  do $(BIN)/python -m benchmarks.$$name || exit 1; done

fuzz: .venv/developer
	$(BIN)/python -m benchmarks.fuzzing

BASE ?= python:3.11-slim
SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct)
BUILD_ARGS ?=

images: .venv/developer
	for target in serving pipeline; do buildah bud --isolation chroot --format docker \
	  --timestamp $(SOURCE_DATE_EPOCH) --build-arg SOURCE_DATE_EPOCH=$(SOURCE_DATE_EPOCH) \
	  --build-arg BASE=$(BASE) --ignorefile deployments/docker/Dockerfile.dockerignore \
	  --file deployments/docker/Dockerfile --target $$target $(BUILD_ARGS) \
	  --tag modelmint/$$target . || exit 1; done
	buildah images | grep -E 'REPOSITORY|modelmint/'
	MODELMINT_BASE=$(BASE) MODELMINT_BUILD_ARGS='$(BUILD_ARGS)' \
	  $(BIN)/python -m pytest -n 0 -m slow tests/deployments/docker

slow: .venv/developer
	$(BIN)/python -m pytest -m slow tests/flows tests/tasks tests/test_golden.py \
	  tests/deployments/local/test_prefect_worker.py tests/deployments/local/test_drift.py \
	  tests/deployments/watcher/test_watchdog.py
	$(BIN)/python -m pytest -m 'slow or not slow' tests/deployments/local/test_supervisor.py

POSTGRES := $(wildcard /usr/lib/postgresql/*/bin/postgres)
SERVICES := postgresql redis-server

services:
	@if [ -n "$(POSTGRES)" ] && command -v redis-server > /dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
	  apt-get -qq update && \
	  DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends $(SERVICES); \
	else echo "this needs packages of Debian, as root: apt-get install $(SERVICES)" >&2; exit 1; fi

production: services .venv/developer
	$(BIN)/pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[production]'
	$(BIN)/python -m pytest -m slow tests/production

faults: .venv/developer
	$(BIN)/python -m pytest -m slow tests/deployments/watcher/test_faults.py tests/deployments/local/test_full_disk.py

cluster: .venv/developer
	$(BIN)/python -m pytest -n 0 -m 'slow or not slow' tests/cluster

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $(PIP_ARGS) -c constraints.txt -e .
	touch $@

.venv/developer: .venv/installed
	$(BIN)/pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv .modelmint
