# `make` alone lists the targets. Another Python: make test PYTHON=.venv/bin/python
PYTHON ?= python

.DEFAULT_GOAL := help
.PHONY: help test test-all mutants nightly lint bench report

help: ## List the targets
	@grep -hE '^[a-z-]+: .*## ' $(MAKEFILE_LIST) | sed 's/: .*## /\t/' | expand -t 12

test: ## The fast tests, about two minutes: what to run while working
	$(PYTHON) -m pytest -q

test-all: test ## All tests but the longest: the fast ones, then the slow ones
	$(PYTHON) -m pytest -q -m "slow and not long"

mutants: ## Plant mistakes, see that tests notice: all, or ONLY=config,k-rope-* or CHANGED=main; about ten minutes
	$(PYTHON) -m tests.mutants --only "$(ONLY)" --changed "$(CHANGED)"

nightly: ## 500 new random shapes for each property test of the kernels; about an hour
	HYPOTHESIS_PROFILE=default HYPOTHESIS_EXAMPLES=500 $(PYTHON) -m pytest -q -m "hypothesis and not long"

lint: ## Formatter, linter and type checker; none of them changes a file
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy

bench: ## A quick benchmark beside transformers, on random weights, in about a minute; writes to ./results
	$(PYTHON) -m benchmarks generate --model tiny-shape --dtypes float32 --rounds 2 --output results

report: ## Write the tables and plots of both README files from the records in benchmarks/results
	$(PYTHON) -m benchmarks report
