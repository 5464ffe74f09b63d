# Everything a person or CI runs. Needs Python 3.11 or newer and make; all else goes into .venv.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-deps
SOURCES := gateway ledger providers tests benchmarks
BENCHMARKS ?= throughput overhead streaming ledger flush
UV := 0.13.9

.DEFAULT_GOAL := help
.PHONY: help up dev check test scenarios storm faults bench lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

up: .venv/demo ## start everything with a real model and make one metered call; ONCE=1: then stop
	@$(BIN)/tollgate up

dev: .venv/tools .venv/demo ## all that working on Tollgate needs, into .venv
	@echo "ready: make check, make test; or 'source $(BIN)/activate' and use pytest, ruff, mypy, tollgate"

check: .venv/tools ## format, lint, types, spelling and architecture, in seconds
	$(BIN)/ruff format --check --quiet $(SOURCES)
	$(BIN)/ruff check --quiet $(SOURCES)
	$(BIN)/mypy $(SOURCES)
	$(BIN)/codespell
	$(BIN)/pytest --quiet tests/test_architecture.py

test: .venv/tools ## every test but scenarios and planted faults, in random order
	$(BIN)/pytest -n 2 -m "not scenario and not fault" $(ARGS)

scenarios: .venv/tools .venv/demo ## whole processes and faults; LONG=1: the long form
	$(BIN)/pytest -m scenario $(if $(LONG),--timeout=3600,-n 2 --dist worksteal) $(ARGS)

storm: .venv/tools .venv/demo ## only the storm, for STORM=60m or as long as one likes; STORM_SEED=7: again
	$(BIN)/pytest -m scenario --capture=no tests/scenarios/storm/test_storm.py $(ARGS)

faults: .venv/tools ## plant every fault of tests/faults in a copy: a test must catch it; FAULT=name: one
	$(BIN)/pytest -n 2 -m fault -rA tests/faults $(ARGS)

bench: .venv/tools ## the benchmarks; BENCHMARKS="overhead ledger": only these
	$(BIN)/python -m benchmarks $(BENCHMARKS)

clean: ## remove .venv and caches; never data
	rm -rf .venv .venv-lock .mypy_cache .ruff_cache .pytest_cache .hypothesis dist
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +

lock: # resolve pyproject.toml anew, within what it allows
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet uv==$(UV)
	$(call compile,--extra build,requirements.lock)
	$(call compile,--extra build --extra dev -c requirements.lock,requirements-dev.lock)
	$(call compile,--extra demo -c requirements-dev.lock,requirements-demo.lock)

define compile
.venv-lock/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" \
	$(1) pyproject.toml --output-file $(2)
endef

# One stamp per set of packages; a changed lock or pyproject.toml makes it old.

.venv/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Tollgate needs Python 3.11 or newer; name one: make PYTHON=/path/to/python3")'
	$(PYTHON) -m venv .venv
	@touch $@

.venv/runtime: requirements.lock pyproject.toml | .venv/python
	$(PIP) --require-hashes -r requirements.lock
	$(PIP) --no-build-isolation --editable .
	@touch $@

.venv/tools: requirements-dev.lock .venv/runtime
	$(PIP) --require-hashes -r requirements-dev.lock
	@touch $@

.venv/demo: requirements-demo.lock .venv/runtime
	$(PIP) --require-hashes -r requirements-demo.lock
	@touch $@
