# The whole life of the project. `make` alone lists what there is.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
# One package builds from source; nothing here may ask a question.
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help install demo test lint unit bench soak down clean lock

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: .venv/installed ## create the environment in .venv

.venv/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 13) else "Python 3.11 to 3.13 is needed, found " + sys.version.split()[0])'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { echo "No venv module: install python3-venv (apt-get install python3-venv) and call make again." >&2; rm -rf .venv; exit 1; }
	$(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

demo: install ## start the platform, run the flights example on real data, leave it running
	@$(BIN)/python examples/flights/demo.py

down: install ## stop what the demo left running
	@$(BIN)/thyme down

test: install lint unit ## everything CI runs

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Tests of whole platforms mostly wait, so they run beside all the others: 12 minutes instead of 19 on two cores. They
# go first: Ray gives its workers a niceness of 15, and they must not starve.
unit: install
	@mkdir -p build
	@trap 'kill $$platforms' INT TERM; \
	$(BIN)/python -m pytest -m cluster >build/platform-tests.log 2>&1 & platforms=$$!; \
	nice -n 19 $(BIN)/python -m pytest -m "not cluster"; rest=$$?; \
	wait $$platforms; platforms=$$?; cat build/platform-tests.log; exit $$((rest | platforms))

bench: install ## BENCH=<name>: measure, print a table, write build/bench/<name>.json
	@test -n "$(BENCH)" || { echo "usage: make bench BENCH=<name>; there are:"; ls tests/load/bench_*.py | sed -E 's/.*bench_(.*)\.py/  \1/'; exit 2; }
	@$(BIN)/python -m tests.load.bench_$(BENCH)

soak: install ## faults against a running load, counted exactly (SOAK_SECONDS, SOAK_EVENTS, SOAK_ROUNDS, SOAK_SEED)
	@$(BIN)/python -m tests.load.soak

lock: ## resolve requirements.lock anew
	$(BIN)/uv pip compile pyproject.toml --extra platform --extra embedded --extra postgres --extra kafka --extra kinesis --extra s3 --extra iceberg \
		--extra snowflake --extra bigquery --extra tracing --extra examples --group dev \
		--no-header --no-annotate --no-emit-index-url --no-emit-find-links --python-version 3.11 -o requirements.lock

clean: ## forget the environment and everything built
	rm -rf .venv build
