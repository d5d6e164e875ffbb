# Everything that is done in this repository by one command. `make` lists the targets.

PYTHON ?= python3
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# The order of prerequisites below is meant: packages of the system before what is built with them.
.NOTPARALLEL:
.PHONY: docs help setup setup-test system-packages demo dev fhir-server lint test bench-headers bench-shapes bench-fhir bench-upload soak clean check-python

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## Make .venv with the package and all that it needs (PYTHON=python3.12 picks another Python)

setup-test: system-packages setup ## setup, and what the tests need: Java, Maven, Chromium, PostgreSQL (apt), the FHIR servers
	@$(BIN)/python -m tests.servers.hapi_server
	@$(BIN)/python -m tests.servers.medplum_server

demo: setup ## Load an example dataset, with nothing to install or configure
	@$(BIN)/python scripts/demo.py

dev: setup ## Start the Dagster UI on this project
	@$(BIN)/python scripts/dev.py

fhir-server: setup-test ## Start the FHIR server of the tests, to try an upload: http://127.0.0.1:8095/fhir, data in memory
	@echo "dicom-etl run --fhir-url http://127.0.0.1:8095/fhir (ready in some ten seconds; Ctrl-C ends it)"
	@cd tests/servers/hapi && LONG_LIVED=true ./run.sh -Dport=8095

docs: setup ## Build the documentation as a website in site/, without network
	@$(BIN)/python -m scripts.docs_tables --check
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict
	@echo "open site/index.html in a browser (its search needs a web server: python3 -m http.server -d site)"

lint: setup ## Check style (ruff) and types (mypy)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: setup-test lint ## Run all checks and tests (WORKERS=2: test processes)
	$(BIN)/python -m pytest -q -n $(WORKERS)

soak: setup-test ## Upload under 200 seeds of faults, 300 of odd answers, and 400 kills (ARGS='--seeds 1000' KILL_ARGS='--kills 500')
	@$(BIN)/python -m tests.upload.soak.faults_soak $(ARGS)
	@$(BIN)/python -m tests.upload.soak.odd_answers_soak $(ARGS)
	@$(BIN)/python -m tests.upload.soak.kill_soak $(KILL_ARGS)

bench-headers: setup ## Measure header extraction beside pydicom and others, some minutes (ARGS='--files 500 --no-peers')
	@$(BIN)/python -m benchmarks.headers $(ARGS)

bench-shapes: setup ## Measure all stages for few large and many small subjects (ARGS='--files 2000 --shapes wide,tall')
	@$(BIN)/python -m benchmarks.shapes $(ARGS)

bench-fhir: setup ## Measure the making of FHIR resources beside dicom2fhir, some minutes (ARGS='--studies 200 --no-peer')
	@$(BIN)/python -m benchmarks.fhir_resources $(ARGS)

bench-upload: setup-test ## Measure the upload beside fhirpy's save() on the test server, some minutes (ARGS='--studies 60 --max-concurrent-requests 4')
	@$(BIN)/python -m benchmarks.upload $(ARGS)

clean: ## Remove all that make has made; .dagster, the history of runs, stays
	rm -rf $(VENV) build dist *.egg-info demo site .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -rf tests/servers/hapi/target tests/servers/medplum/target tests/servers/medplum/node_modules
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

system-packages:
	@PYTHON="$(PYTHON)" scripts/system_packages.sh

check-python:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "$(PYTHON) was not found. Python 3.11 or newer is needed; make PYTHON=/path/to/python names one." >&2; \
	  exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
	    "make PYTHON=python3.12 (or a path) names another." >&2; \
	  exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments. On Debian and Ubuntu: apt install" \
	    "$$($(PYTHON) -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')" >&2; \
	  exit 1; }

# The stamp comes last: an installation that was cut off starts again.
$(INSTALLED): pyproject.toml constraints.txt | check-python
	@echo "Installing into $(VENV); the first time this fetches about 250 MB ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dagster,dask,postgres,dev]'
	@touch $@
