# `make help` explains every target. All set-up happens here: a fresh clone needs Python 3.11, git and make.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# No library of the stack phones home; pipelines/__init__.py sets the same for those who do not use make.
export DO_NOT_TRACK := 1
# Where Python may not keep bytecode (many images say so), every start of a stage would compile its libraries anew.
COMPILED := $(if $(PYTHONDONTWRITEBYTECODE),--compile-bytecode)

.PHONY: help run test test-slow test-spark lint up down status bench clean lock

help: ## Show this list
	@grep -hE '^[a-z%-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

.venv/ready: requirements.lock pyproject.toml
	@echo "Setting up .venv from requirements.lock with $(PYTHON) (a minute or two the first time)"
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if v == (3, 11) else f"Reloop needs Python 3.11, found {v[0]}.{v[1]}; run: make PYTHON=/path/to/python3.11")'
	@$(PYTHON) -m venv .venv
	@sed -n '/^uv==/,/[^\\]$$/p' requirements.lock > .venv/uv.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement .venv/uv.lock
	@$(BIN)/uv pip sync --quiet $(COMPILED) --python $(BIN)/python --require-hashes requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

# The simulated shop has its bad days, too, so that the quarantine has something to show.
DEMO := --fault duplicates@2025-02-11 --fault future_clock@2025-02-19 --fault late@2025-03-05

run: .venv/ready ## The whole loop on a simulated shop, two weeks, through Airflow's Dags; ARGS='--source …' for your own data
	@$(BIN)/reloop run $(or $(ARGS),$(DEMO))

test: .venv/ready .venv/system ## Lint, types, layers, SQL, and every test that takes minutes
	@$(MAKE) --no-print-directory lint
	@$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow" --ignore tests/end_to_end $(ARGS)
	@$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow" tests/end_to_end

test-slow: .venv/ready .venv/system ## Full-size and server tests (PostgreSQL, Redis, kill matrices)
	@$(BIN)/python -m pytest -m slow $(ARGS)

# MLlib is half a gigabyte and needs Java 17, so only its own target installs it.
.venv/spark: .venv/ready requirements-spark.lock
	@$(BIN)/uv pip install --quiet --no-build-isolation --python $(BIN)/python --require-hashes --requirement requirements-spark.lock
	@touch $@

test-spark: .venv/spark ## The tests of the source that Spark fits
	@$(BIN)/python -m pytest -k spark tests/retrieval $(ARGS)

lint: .venv/ready ## ruff, mypy --strict, import contracts, sqlfluff
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy & types=$$!; rest=0; \
	  $(BIN)/lint-imports && $(BIN)/sqlfluff lint dbt/models dbt/tests dbt/macros --disable-progress-bar || rest=$$?; \
	  wait $$types && exit $$rest

# What the tests run beside Python: Redis, PostgreSQL, Chromium. Installed where we are root on Debian or
# Ubuntu; elsewhere the tests that need them say so and skip.
.venv/system: .venv/ready infra/system-packages.txt
	@bash infra/system-packages.sh
	@touch $@

up: .venv/ready ## Start Airflow and MLflow on loopback and print their addresses and login
	@$(BIN)/python infra/up.py up

down: .venv/ready ## Stop what `make up` started
	@$(BIN)/python infra/up.py down

status: .venv/ready ## How far every stage has come
	@$(BIN)/reloop status

bench-%: .venv/ready ## One benchmark, e.g. bench-ingest; figures also in var/reports/bench/
	@$(BIN)/python tests/benchmarks/bench_$(subst -,_,$*).py $(ARGS)

demo-loop: .venv/ready ## The loop, closed: simulated people call the service, and the pipeline learns from its own log, 60 days
	@$(BIN)/python tests/benchmarks/bench_loop.py $(ARGS)

# What other libraries need beside implicit, which Reloop itself installs; never part of .venv.
.venv-peers/ready: .venv/ready tests/benchmarks/peers.txt
	@$(PYTHON) -m venv .venv-peers
	@$(BIN)/uv pip sync --quiet --python .venv-peers/bin/python --require-hashes tests/benchmarks/peers.txt
	@touch $@

bench-retrieval-speed: .venv-peers/ready ## Sources against the libraries one would take instead, and candidates for a million users
	@$(BIN)/python tests/benchmarks/bench_retrieval_speed.py $(ARGS)

bench-spark: .venv/spark ## The source that Spark fits beside the one that implicit does
	@$(BIN)/python tests/benchmarks/bench_spark.py $(ARGS)

bench-scoring: .venv-peers/ready ## Trees scored by us, by LightGBM and by other libraries; ARGS='--curve var --as-of DAY' for NDCG against time
	@$(BIN)/python tests/benchmarks/bench_scoring.py $(ARGS)

bench: .venv/ready .venv-peers/ready ## Every benchmark
	@for file in tests/benchmarks/bench_*.py; do $(BIN)/python $$file; done

clean: ## Forget all state (var/); the environment stays
	@rm -rf var

lock: ## Resolve requirements.lock anew (needs the package registry)
	@$(BIN)/uv pip compile pyproject.toml --all-extras --generate-hashes --no-emit-index-url --no-annotate --no-header --python-version 3.11 --upgrade --quiet --no-emit-package pyspark --no-emit-package py4j --output-file requirements.lock
	@$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["spark"], sep="\n")' \
	  | $(BIN)/uv pip compile - --generate-hashes --no-emit-index-url --no-annotate --no-header --python-version 3.11 --upgrade --quiet --output-file requirements-spark.lock
