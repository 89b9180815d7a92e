PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo lint test test-redis crash fuzz soak bench bench-scale clean lock

help:  ## Show what there is to make
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 12

setup: $(READY)  ## Create .venv with everything, once for each state of the lock file

$(READY): requirements-dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit(f"Python >= 3.11 is needed, this is {v.major}.{v.minor}; try: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements-dev.lock
	$(BIN)/python -m pip install --quiet --no-deps -e .
	@touch $@

demo: setup  ## Run the quickstart notebook on real data, headless
	$(BIN)/python notebooks/run_demo.py

lint: setup  ## ruff, mypy --strict, import-linter, and whether docs/protocol.md is current
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python docs/generate.py --check

test: setup  ## Run all tests
	$(BIN)/python -m pytest tests

# The folders whose tests depend on what a server does; the others would just say the same again.
SERVER_TESTS := tests/protocol tests/worker tests/crash tests/fundamentals

test-redis: setup  ## Run the tests that use a server on the redis-server in PATH
	@command -v redis-server || { echo "no redis-server on PATH: apt-get install redis-server"; exit 1; }
	NBSTREAMQ_TEST_SERVER=$$(command -v redis-server) $(BIN)/python -m pytest $(SERVER_TESTS)

crash: setup  ## Run the tests that kill real processes
	$(BIN)/python -m pytest -m crash tests

fuzz: setup  ## Put 100,000 forged messages into a queue at work
	NBSTREAMQ_FUZZ=100000 $(BIN)/python -m pytest tests/crash/test_fuzz.py

MINUTES ?= 3
SEED ?=
soak: setup  ## Draw faults at random under load, and count: make soak MINUTES=60
	$(BIN)/python -m tests.soak $(MINUTES) $(SEED)

# In an environment of its own, with what it compares: some of that holds back other packages.
BENCH := .venv-bench
$(BENCH)/.ready: requirements-bench.lock pyproject.toml
	$(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -m pip install --quiet -r requirements-bench.lock
	$(BENCH)/bin/python -m pip install --quiet --no-deps -e .
	@touch $@

PEERS ?=
ROUNDS ?= 5
bench: $(BENCH)/.ready  ## Compare with what people would use instead: make bench PEERS="ray rq" ROUNDS=5
	$(BENCH)/bin/python -m benchmarks --rounds $(ROUNDS) --peers $(PEERS)

bench-scale: $(BENCH)/.ready  ## Measure how nbstreamq itself scales, and what one server carries
	$(BENCH)/bin/python -m benchmarks.scaling
	$(BENCH)/bin/python -m benchmarks.capacity

LOCK := uv pip compile --quiet --universal --python-version 3.11 --extra notebooks --group dev \
	--no-header --no-emit-index-url --no-emit-find-links --no-annotate --upgrade
lock:  ## Write the lock files anew, from pyproject.toml; needs uv
	$(LOCK) -o requirements-dev.lock pyproject.toml
	$(LOCK) --group bench -o requirements-bench.lock pyproject.toml

clean:  ## Remove the environments and all that was built or cached
	rm -rf $(VENV) $(BENCH) build dist .mypy_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
