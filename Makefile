# `make demo` shows the product on this machine; `make test` proves it. Both set up all they need first.

.DEFAULT_GOAL := help
.PHONY: help setup test check demo soak bench openapi screenshots clean

python := .venv/bin/python

help: ## list these targets
	@sed -n 's/^\([a-z]*\): .*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 13

setup: ## install Debian packages and the virtual environments, when they are missing
	@tests/servers/setup.sh

test: setup ## every test; ARGS='...' is handed to pytest
	$(python) -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

check: setup ## the fast lane: lint, format, types, import rules, migrations, docs and unit tests
	$(python) -m pytest -m unit $(ARGS)

demo: setup ## the main job on made-up exports; ONCE=1 ends after the report
	@$(python) -m tests.demo $(if $(ONCE),--once)

soak: setup ## a drain under random faults and random deaths; MINUTES=10, SEED=7 repeats the choices of a run, KEEP=1 keeps its folder
	@$(python) -m tests.soak $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED)) $(if $(KEEP),--keep)

bench: ## against rclone and others, about 30 minutes; ROWS='s3-small tiny' ROUNDS=5 choose, README=1 writes the README's section
	@tests/servers/setup.sh bench
	@$(python) -m tests.bench $(ROWS) $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(README),--readme)

openapi: setup ## write the REST API's description to docs/openapi.yaml
	$(python) manage.py spectacular --file docs/openapi.yaml --validate --fail-on-warn

screenshots: setup ## photograph the console while it does the job, for docs/screenshots; EVERY=folder also takes every page, in both themes
	$(python) -m tests.browser.screenshots $(if $(EVERY),--every $(EVERY))

clean: ## remove the virtual environments, caches and the demo's data
	rm -rf .venv .venv-servers var .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
