PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Most tests wait, so four run at a time on two cores. Those of a file share servers and queues, and stay together.
# Files are not sorted by their number of tests: the longest ones have few.
PYTEST := python -m pytest -n 4 --dist loadfile --no-loadscope-reorder
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo lint test test-slow test-quick test-newest test-lowest test-pythons test-packages test-foreign test-slurm test-faults test-redis test-all crash fuzz soak
.PHONY: bench bench-call bench-order bench-scale clean lock

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

test: setup  ## Run all tests but the slow ones
	$(BIN)/$(PYTEST) -m "not slow" tests

test-slow: setup  ## Run the slow tests
	$(BIN)/$(PYTEST) -m slow tests

# What depends most on other packages: functions, errors, the basics of a notebook, the protocol.
QUICK_TESTS := tests/objects tests/wire tests/fundamentals \
	tests/client/test_functions.py tests/client/test_classes.py tests/client/test_errors.py \
	tests/notebook/test_magics.py tests/notebook/test_html.py tests/notebook/test_errors.py
# The environment that `make test-quick` runs in.
ENVIRONMENT ?= $(VENV)
test-quick: $(ENVIRONMENT)/.ready  ## Run the tests that depend most on other packages
	$(ENVIRONMENT)/bin/$(PYTEST) $(QUICK_TESTS)

# Without a lock file: the newest versions that pip finds.
.venv-newest/.ready: pyproject.toml
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --upgrade pip
	$(@D)/bin/python -m pip install --quiet --upgrade --group dev -e '.[notebooks]'
	@touch $@

test-newest:  ## Run the quick tests with the newest versions of all dependencies
	$(MAKE) test-quick ENVIRONMENT=.venv-newest

.venv-lowest/.ready: pyproject.toml
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet uv
	$(@D)/bin/uv pip compile --quiet --resolution lowest-direct --python $(@D)/bin/python \
		--extra notebooks --group dev -o $(@D)/lowest.txt pyproject.toml
	$(@D)/bin/uv pip install --quiet --python $(@D)/bin/python -r $(@D)/lowest.txt
	$(@D)/bin/uv pip install --quiet --python $(@D)/bin/python --no-deps -e .
	@touch $@

test-lowest:  ## Run the quick tests with the lowest versions that pyproject.toml allows
	$(MAKE) test-quick ENVIRONMENT=.venv-lowest

# Other Pythons, by minor version: .venv-3.13 is made by python3.13, from PATH or from pyenv.
PYTHONS := 3.12 3.13
.venv-3.%/.ready: pyproject.toml
	$$(tests/find_python 3.$*) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --upgrade pip
	$(@D)/bin/python -m pip install --quiet --upgrade --group dev -e '.[notebooks]'
	@touch $@

test-pythons: $(PYTHONS:%=.venv-%/.ready)  ## Run all tests with other Pythons and the newest packages
	$(foreach version,$(PYTHONS),.venv-$(version)/bin/$(PYTEST) tests -m "not browser and not slow" &&) true

test-foreign: .venv-3.13/.ready setup  ## Run tests of CPython, joblib and scikit-learn, jobs of other tools, and as if on another system
	.venv-3.13/bin/python -m tests.foreign.cpython_executors
	$(BIN)/python -m tests.foreign.joblib_parallel
	$(BIN)/python -m tests.foreign.sklearn_suites
	$(MAKE) .venv-tools/.ready
	.venv-tools/bin/python -m pytest tests/foreign/tools.py tests/foreign/stores.py tests/foreign/clusters.py
	$(BIN)/python -m pytest tests/foreign/platforms.py

test-packages: setup  ## Install the wheel and the sdist in clean environments on each Python, and use them
	$(BIN)/python -m pytest tests/foreign/packages.py

# In an environment of its own, with what takes an executor or a pool.
.venv-tools/.ready: pyproject.toml
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --upgrade pip
	$(@D)/bin/python -m pip install --quiet --upgrade --group dev --group tools -e .
	@touch $@

test-slurm: setup  ## Run workers in jobs of a real Slurm, and behind a real sshd; needs root and Debian's packages
	@command -v slurmctld slurmd sbatch munged /usr/sbin/sshd >/dev/null || { echo "needed: apt-get install slurmctld slurmd slurm-client munge openssh-server"; exit 1; }
	$(BIN)/python -m pytest tests/foreign/elsewhere.py --timeout 180

# The folders whose tests depend on what a server does; the others would just say the same again.
SERVER_TESTS := tests/wire tests/worker tests/crash tests/fundamentals

test-redis: setup  ## Run the tests that use a server on the redis-server in PATH
	@command -v redis-server || { echo "no redis-server on PATH: apt-get install redis-server"; exit 1; }
	NBSTREAMQ_TEST_SERVER=$$(command -v redis-server) $(BIN)/$(PYTEST) $(SERVER_TESTS)

crash: setup  ## Run the tests that kill real processes
	$(BIN)/$(PYTEST) -m crash tests

fuzz: setup  ## Put 100,000 forged messages into a queue at work
	NBSTREAMQ_FUZZ=100000 $(BIN)/python -m pytest tests/crash/test_fuzz.py

test-faults: setup  ## Raise an error at every call between submission and result, not only at some
	NBSTREAMQ_FAULTS=all $(BIN)/python -m pytest --timeout 1200 tests/crash/test_faults.py

test-all: lint test test-slow test-redis test-newest test-lowest test-pythons test-packages test-foreign test-slurm test-faults soak  ## Everything, about two hours

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

bench-call: setup  ## Count and time what a lone call does, next to ProcessPoolExecutor
	$(BIN)/python -m benchmarks.lone_call

PEERS ?=
ROUNDS ?= 5
bench: $(BENCH)/.ready  ## Compare with what people would use instead: make bench PEERS="ray rq" ROUNDS=5
	$(BENCH)/bin/python -m benchmarks --rounds $(ROUNDS) --peers $(PEERS)

bench-order: $(BENCH)/.ready  ## Measure when the results of a map come, and how jobs share the workers
	$(BENCH)/bin/python -m benchmarks.order --long

bench-scale: $(BENCH)/.ready  ## Measure how nbstreamq itself scales, and what one server carries
	$(BENCH)/bin/python -m benchmarks.scaling
	$(BENCH)/bin/python -m benchmarks.capacity

LOCK := uv pip compile --quiet --universal --python-version 3.11 --extra notebooks --group dev \
	--no-header --no-emit-index-url --no-emit-find-links --no-annotate --upgrade
lock:  ## Write the lock files from pyproject.toml; needs uv
	$(LOCK) -o requirements-dev.lock pyproject.toml
	$(LOCK) --group bench -o requirements-bench.lock pyproject.toml

clean:  ## Remove the environments and all that was built or cached
	rm -rf $(VENV) .venv-* build dist .mypy_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
