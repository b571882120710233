# Two commands do everything on a fresh machine: `make audit` and `make test`.
# `make help` lists the rest.

SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Options for `fastmem audit`, e.g. make audit ARGS="--data mnist --data-root ~/data --model cnn"
ARGS ?=

native_sources := $(shell find csrc -type f) CMakeLists.txt pyproject.toml constraints.txt tools/install.sh

.DEFAULT_GOAL := help
.PHONY: help audit test native check format bench sanitize clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

audit: $(VENV)/.installed ## Set up, then audit a model of scikit-learn's digits (ARGS="--data mnist ..." for others)
	$(BIN)/fastmem audit $(ARGS)

test: $(VENV)/.installed-dev ## Set up, then run the checks and the tests
	$(BIN)/python -m pytest -n 2 --dist loadgroup $(ARGS)

check: $(VENV)/.installed-dev ## Linters, types, import rules and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright
	find csrc -type f | xargs $(BIN)/clang-format --dry-run --Werror

format: $(VENV)/.installed-dev ## Format Python and C++
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	find csrc -type f | xargs $(BIN)/clang-format -i

native: $(VENV)/.installed ## Build the native modules again where their sources changed

sanitize: $(VENV)/.installed-dev ## Run the operator tests on a build with AddressSanitizer and UBSan
	tools/sanitize.sh $(VENV)

bench: $(VENV)/.installed-dev ## Benchmarks against eager PyTorch and torch.compile
	$(BIN)/python -m benchmarks $(ARGS)

$(VENV)/.installed: $(native_sources)
	tools/install.sh $(PYTHON) $(VENV)
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	tools/install.sh $(PYTHON) $(VENV) dev
	@touch $@

clean: ## Remove the environment and everything built
	rm -rf $(VENV) build
