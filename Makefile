# Every target sets up what it needs: its own virtual environment, pinned by constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
SAMPLE := $(CURDIR)/sample-lake
DATA_LAKE ?= $(CURDIR)/DATA_LAKE

# An image that forbids bytecode has every process compile what it imports, seconds each.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo dev timestamp-aggregation timestamps-aggregation test test-all test-browser test-fleet test-strace test-stac test-azure everything debian azurite screenshots lint bench bench-options bench-series bench-scaling bench-fleet bench-quick soak coverage mutants clean

demo: .venv/run  ## aggregate a small sample lake and show the result
	@$(BIN)/python -m thess_agg_dagster demo $(SAMPLE)
	@echo "or:  make dev"

test: .venv/ready  ## run all tests that need only Python
	$(BIN)/python -m pytest

test-all: everything  ## run all tests, including those in a browser and with the services of a fleet, as CI does
	$(BIN)/python -m pytest -m "not soak"

test-browser: everything  ## test the UI in a real browser
	$(BIN)/python -m pytest -m browser -n 0

test-fleet: everything  ## test a fleet with real services
	$(BIN)/python -m pytest -m fleet -n 2

test-strace: everything  ## test power cuts, and faults at every system call
	$(BIN)/python -m pytest -m "strace and not soak" -n 2

test-stac: everything  ## test searches of a real STAC API
	$(BIN)/python -m pytest -m stac -n 0

test-azure: everything  ## test lakes in Azure's blob storage, as Azurite plays it
	$(BIN)/python -m pytest -m azure -n 0

everything:  ## set up the virtual environment and install what is not from Python, at the same time
	@$(MAKE) --no-print-directory --jobs=2 .venv/compiled debian azurite

azurite: .venv/node_modules/azurite
.venv/node_modules/azurite: | debian
	npm install --prefix .venv --silent --no-audit --no-fund --ignore-scripts azurite@3.37.0

debian:  ## install those of the Debian packages chromium, npm, postgresql-postgis, redis-server and strace that are missing, as root
	@missing=""; \
	for package in chromium npm redis-server strace; do command -v $$package >/dev/null || missing="$$missing $$package"; done; \
	ls /usr/share/postgresql/*/extension/postgis.control >/dev/null 2>&1 || missing="$$missing postgresql-postgis"; \
	[ -z "$$missing" ] || (set -x; apt-get update -q && apt-get install -y -q --no-install-recommends $$missing)

screenshots: everything  ## test the UI and update the pictures in README and docs
	SCREENSHOTS=docs/screenshots $(BIN)/python -m pytest -m browser -n 0

dev: .venv/run  ## start the Dagster UI on the sample lake (or on DATA_LAKE=... if given), http://localhost:3000
	@$(BIN)/python -m thess_agg_dagster ui --data-lake $(if $(filter command line environment,$(origin DATA_LAKE)),$(DATA_LAKE),$(SAMPLE))

timestamps-aggregation: timestamp-aggregation

timestamp-aggregation: .venv/run  ## aggregate every timestamp of $DATA_LAKE
	DATA_LAKE=$(DATA_LAKE) $(BIN)/python -m thess_agg_dagster

lint: .venv/ready  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	cd examples/vegetation && $(CURDIR)/$(BIN)/mypy --strict vegetation test_vegetation.py

bench: .venv/ready  ## compare full-size tiles with other tools and the limit set by the codecs (about 40 minutes, 3 GB in bench-lake)
	$(BIN)/python -m benchmarks.run

bench-options: .venv/ready  ## measure the cost of areas, masks, coarser pixels and COGs (about 10 minutes, in the same folder)
	$(BIN)/python -m benchmarks.run --options

bench-series: .venv/ready  ## measure a whole series at full size, 46 timestamps of three tiles, GeoTIFF and JPEG 2000 (an hour, 45 GB)
	$(BIN)/python -m benchmarks.series

bench-scaling: everything  ## measure the cost of 100 to 10 000 timestamps in databases, sensors and pages (an hour)
	$(BIN)/python -m benchmarks.scaling

bench-quick: .venv/ready  ## run the benchmark at a third of the size, without writing results
	$(BIN)/python -m benchmarks.run --quick

bench-fleet: everything  ## measure timestamps per second with one and two workers of a fleet
	$(BIN)/python -m benchmarks.fleet

soak: .venv/ready  ## run minutes of load and fuzzing, for the figures in docs/RELIABILITY.md
	$(BIN)/pip install $(PIP_OPTIONS) --editable ".[soak]"
	$(BIN)/python -m pytest -m soak -s -n 0

coverage: .venv/ready  ## run the tests and count the branches that they take in their own processes
	$(BIN)/pip install $(PIP_OPTIONS) --editable ".[coverage]"
	$(BIN)/python -m pytest --cov=thess_agg_dagster --cov-branch --cov-report=term:skip-covered

mutants: .venv/ready  ## mutate the modules that decide, one fault at a time, and count how many the tests detect (MODULES="mosaic/rules ...", SAMPLE=40 of each)
	$(BIN)/pip install $(PIP_OPTIONS) --editable ".[mutants]"
	nice -n 19 $(BIN)/python -m thess_agg_dagster_tests.mutants $(MODULES)

clean:  ## remove the virtual environment and the sample lake
	rm -rf .venv sample-lake

# uv takes a tenth of pip's time, but does not read pip's settings: where these name another index, or uv fails, pip installs.
# Modules are compiled when they are first imported: most never are.
PIP_OPTIONS := --quiet --disable-pip-version-check --no-compile --constraint constraints.txt
define install
$(PYTHON) -m venv .venv
if $(BIN)/pip config list | grep -E '[.](index-url|no-index)=' >/dev/null || ! $(BIN)/pip install $(PIP_OPTIONS) uv \
	|| ! $(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable "$(1)"; \
then $(BIN)/pip install $(PIP_OPTIONS) --editable "$(1)"; fi
endef

# What running needs, and no more.
.venv/run: pyproject.toml constraints.txt
	$(call install,.)
	touch $@

# With what tests and benchmarks need.
.venv/ready: pyproject.toml constraints.txt
	$(call install,.[dev])
	touch .venv/run $@

# What tests import, compiled while Debian's packages are installed: otherwise each of pytest's four workers does it.
.venv/compiled: .venv/ready
	-$(BIN)/python -m pytest -n 0 --collect-only -qq > /dev/null
	touch $@
