# The whole life of the project. `make` alone lists what there is.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Platforms load our modules in dozens of processes: the compiled ones are kept.
unexport PYTHONDONTWRITEBYTECODE
# One package builds from source; nothing here may ask a question.
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help install demo test lint style types unit bench soak down clean lock

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

# What takes seconds ends it at once. The type checker keeps one core busy for a minute, the tests begin meanwhile; what it
# found is said again at the end.
test: install style ## everything CI runs
	@$(MAKE) unit & tests=$$!; trap 'kill $$tests' INT TERM; \
	failed=0; $(GIVING_WAY) $(MAKE) types || failed=1; checked=$$failed; wait $$tests || failed=1; \
	if [ $$checked = 1 ]; then echo "A checker found something: see above, or call make lint." >&2; fi; exit $$failed

lint: install style types

style: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy
	$(BIN)/lint-imports

# Tests of whole platforms mostly wait, so they run beside all the others, which give way to them: one process for the
# tests over real stores, one for the rest. Platforms run in sessions of their own, and where the kernel groups processes
# by session, niceness means nothing outside of one: each of the others is a nice session too. Their frames are small:
# threads would only wake up.
GIVING_WAY := POLARS_MAX_THREADS=1 setsid nice -n 12 sh -c '{ echo 12 >/proc/self/autogroup; } 2>/dev/null; exec "$$0" "$$@"'
OVER_STORES := tests/api tests/contract

unit: install ## every test (TEST_PROFILE=soak: random tests draw all they can)
	@mkdir -p build
	@trap 'kill $$platforms $$stores $$rest' INT TERM; \
	$(BIN)/python -m pytest -m cluster >build/platform-tests.log 2>&1 & platforms=$$!; \
	$(GIVING_WAY) $(BIN)/python -m pytest -m "not cluster" $(OVER_STORES) >build/store-tests.log 2>&1 & stores=$$!; \
	$(GIVING_WAY) $(BIN)/python -m pytest -m "not cluster" $(OVER_STORES:%=--ignore=%) & rest=$$!; \
	failed=0; for each in $$rest $$stores $$platforms; do wait $$each || failed=1; done; \
	cat build/store-tests.log build/platform-tests.log; exit $$failed

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
