# Two commands need nothing before them: `make demo` and `make test`.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
BIN := .venv/bin
# uv reads UV_FIND_LINKS only; without a folder of wheels, torch's CPU build comes from PyTorch's own index.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
TORCH := $(if $(UV_FIND_LINKS),,--torch-backend cpu)
export HF_HUB_OFFLINE ?= 1
SHELL := /bin/bash
.PHONY: demo test test-fast test-slow test-all docs reference real-model soak pins lint audit wheel clean

demo: .venv/ready  ## the whole recipe on this machine, into runs/demo
	$(BIN)/bezoar run tiny --run-dir runs/demo

test: .venv/ready  ## what every change must pass
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -m "not slow and not soak" $(ARGS)

test-fast: .venv/ready  ## the tests that need neither Ray nor the embedded world
	$(BIN)/pytest -q -m "not heavy and not slow and not soak" $(ARGS)

test-slow: .venv/ready
	$(BIN)/pytest -m "slow and not soak" $(ARGS)

test-all: test test-slow

real-model: .venv/ready  ## a real model of 135 million weights into the cache, for the tests
	$(BIN)/python -m tests.real_model

soak: .venv/ready  ## many seeds, by hand; keep the table in tests/soak/README.md
	$(BIN)/pytest -m soak -s $(ARGS)

.venv/ready: cluster/requirements-cpu.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q uv==0.13.8
	$(BIN)/uv pip install -q --compile-bytecode --python $(BIN)/python --no-deps --require-hashes $(TORCH) -r cluster/requirements-cpu.txt
	$(BIN)/uv pip install -q --python $(BIN)/python --no-deps --no-build-isolation -e .
	touch $@

COMPILE = $(BIN)/uv pip compile -q --generate-hashes --no-header --no-annotate --no-emit-find-links --no-emit-index-url
pins: .venv/ready  ## compile both pin files from pyproject.toml
	$(COMPILE) $(TORCH) --python-version 3.11 --extra cpu --extra launcher --extra build --extra dev pyproject.toml -o cluster/requirements-cpu.txt
	UV_FIND_LINKS= $(COMPILE) --python-version 3.11 --python-platform x86_64-manylinux_2_28 --extra gpu --extra launcher --extra build pyproject.toml -o cluster/requirements-gpu.txt

docs: reference  ## the site, into site/; warnings are errors
	$(BIN)/sphinx-build -W --keep-going -q -b html docs site

reference: .venv/ready  ## the pages of docs/reference/ that follow from the code
	$(BIN)/python docs/generate_reference.py

lint: .venv/ready
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

audit: .venv/ready  ## the pinned packages against the advisory database; fails where it cannot be reached
	for stack in cpu gpu; do $(BIN)/uvx pip-audit==2.10.1 --strict --disable-pip --require-hashes \
	  -r <(sed s/+cpu// cluster/requirements-$$stack.txt) || exit; done

wheel: .venv/ready
	$(BIN)/uv build --wheel -q --no-build-isolation

clean:
	rm -rf .venv dist runs site
