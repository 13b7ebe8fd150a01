# Shoal. `make` alone prints what there is. Everything that is installed or built lands in .venv and .cache.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PY := .venv/bin/python
# What `make test` hands to pytest: make test ARGS="tests/unit -k placement"
ARGS ?=
# Test files at once: much of what a test does is waiting for real programs.
WORKERS ?= 2
SEEDS ?= 10000
MINUTES ?= 30
SEED ?=
BENCH ?= publish burst assign failover footprint

.PHONY: help setup components test check format demo bench sim chaos lock clean

help: ## Print this list
	@echo "Shoal: a clustered scheduler for Bento stream pipelines on NATS JetStream"
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)$$/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-16s %s\n", $$1, $$2}'

setup: ## Make .venv with shoal, nats-server and bento in its bin (fast when nothing changed)
	@deploy/setup/venv
	@deploy/setup/go-tool bento runner/bento . .venv/bin/bento

components: setup
	@deploy/setup/test-components

demo: setup ## Start a cluster, run real pipelines, break things, show the recovery (DEMO_EXECUTOR=docker for containers)
	@$(PY) -m cli.demo

test: components ## Run all tests; ARGS="tests/unit -x" narrows it, SHOAL_STRICT=1 makes missing components fail
	@$(PY) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

check: setup ## Lint, format, types, import contracts, generated documentation
	@echo "ruff check"; $(PY) -m ruff check .
	@echo "ruff format"; $(PY) -m ruff format --check .
	@echo "mypy"; $(PY) -m mypy
	@echo "import contracts"; .venv/bin/lint-imports --no-cache
	@echo "generated documentation"; $(PY) -m cli.docs --check

format: setup ## Format and fix what the linter can fix
	@$(PY) -m ruff check --fix-only .
	@$(PY) -m ruff format .

bench: components ## Run the programs that produce the published figures; BENCH="publish burst" narrows it
	@for name in $(BENCH); do echo "== bench/$$name.py"; $(PY) -m bench.$$name; done

sim: setup ## Run the simulation over SEEDS seeds (default 10000)
	@$(PY) -m tests.sim --seeds $(SEEDS)

chaos: components ## Random faults in a real cluster for MINUTES minutes (default 30; needs root); SEED=N repeats a run
	@$(PY) -m tests.chaos --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

# The locks name versions and hashes only, no index: they work with whatever index pip is set up for. The two images
# take the same versions as the development environment.
LOCK := .cache/uv/bin/uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--no-header --no-annotate --quiet

lock: ## Pin the newest versions that pyproject.toml allows, with hashes
	@mkdir -p .cache
	@[ -x .cache/uv/bin/uv ] || { python3 -m venv .cache/uv && .cache/uv/bin/python -m pip install -q uv; }
	$(LOCK) --upgrade --extra dev --extra embedded --extra build pyproject.toml --output-file requirements.lock
	$(LOCK) --constraint requirements.lock pyproject.toml --output-file deploy/requirements.lock
	printf 'hatchling\nsetuptools\n' | $(LOCK) --constraint requirements.lock - --output-file deploy/build-backend.lock
	echo 'nats-py[nkeys]' | $(LOCK) --constraint requirements.lock - --output-file runner/requirements.lock

clean: ## Remove .venv, .cache and what the tools left behind (Go's own caches stay)
	rm -rf .venv .cache build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache .grimp_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
