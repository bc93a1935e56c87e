# What people run. No logic here: it lives in sqshpipe.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

demo: ## the whole path on this machine, and eight ranks that share one mount
	@./bootstrap.sh demo $(PYTHON) $(VENV)
	@$(BIN)/python -m demo

lint: ## ruff, mypy and shellcheck
	@./bootstrap.sh test $(PYTHON) $(VENV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	shellcheck bootstrap.sh .ci/run

test: ## every test that this machine can run
	@./bootstrap.sh test $(PYTHON) $(VENV)
	$(BIN)/pytest

.PHONY: help demo lint test
