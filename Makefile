# What people run. No logic here: it lives in sqshpipe.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(BIN)/sqshpipe: pyproject.toml
	./bootstrap.sh $(PYTHON) $(VENV)
	@touch $@

lint: $(BIN)/sqshpipe ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: $(BIN)/sqshpipe ## every test that this machine can run
	$(BIN)/pytest

.PHONY: help lint test
