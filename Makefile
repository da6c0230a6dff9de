# Each target is complete on a machine with Python 3.11+, make and git: the first one builds .venv, later ones reuse it.
#   make PYTHON=python3.12 demo     another interpreter
#   make TORCH=torch==2.13.0 TORCH_ARGS="--index-url URL" demo     another build of torch
.DEFAULT_GOAL := help
.NOTPARALLEL:

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
TORCH = $(shell sed -n 's/^\(torch==[^ ]*\).*/\1/p' requirements.txt)
TORCH_ARGS ?=
PIP := $(PY) -m pip install -qq --disable-pip-version-check

# One thread a process: small models are fastest so, two busy processes do not trip over each other, and
# results are bit-exact only per thread count. PASSIVE keeps waiting threads off the cores.
export OMP_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= PASSIVE

# A process for each core, at most four: each holds its own torch and diffusers, over a gigabyte.
PARALLEL ?= -n auto --maxprocesses 4 --dist loadfile

.PHONY: help venv demo serve test test-slow test-gpu e2e screenshots check format bench openapi clean distclean

help:  ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' Makefile | expand -t 12

venv: $(READY)  ## build .venv, if it is missing or requirements changed

$(READY): requirements.txt requirements-dev.txt
	@test -n "$(PYTHON)" || { echo "AI Toolkit needs Python 3.11 or newer. Found: $$(python3 --version 2>&1)." \
		"Install one, or name it: make PYTHON=/path/to/python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "AI Toolkit needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)." >&2; exit 1; }
	@$(PY) -m pip --version >/dev/null 2>&1 || { echo "building $(VENV) with $(PYTHON) (once; about 1.5 GB)"; \
		$(PYTHON) -m venv --clear $(VENV); }
	$(PIP) $(TORCH_ARGS) "$(TORCH)"
	$(PIP) -r requirements.txt -r requirements-dev.txt
	@touch $@

demo: export HF_HUB_OFFLINE = 1
demo: $(READY)  ## train a LoRA on the embedded model in minutes and show what it learned
	rm -rf output/demo
	$(PY) run.py config/examples/demo.yml
	$(PY) -m tools.score_demo

serve: $(READY)  ## the web UI and its queue, on http://127.0.0.1:8675
	$(PY) -m web

openapi: $(READY)  ## write docs/openapi.json from the routes
	$(PY) -m tools.write_openapi

test: export HF_HUB_OFFLINE = 1
test: $(READY)  ## the fast tests (under five minutes)
	$(PY) -m pytest testing -q $(PARALLEL)

test-slow: export HF_HUB_OFFLINE = 1
test-slow: $(READY)  ## the tests that take minutes each
	$(PY) -m pytest testing -q -m "slow and not gpu" $(PARALLEL)

test-gpu: $(READY)  ## the tests that need a GPU
	$(PY) -m pytest testing -q -m gpu

e2e: export HF_HUB_OFFLINE = 1
e2e: $(READY)  ## the web UI in a real browser: the system's Chromium, installed where it may be, or CHROMIUM=/path
	$(PY) -m testing.e2e.chromium
	$(PY) -m pytest testing/e2e -q -m e2e

screenshots:  ## the pictures of docs/images/web, made by the browser tests
	SCREENSHOTS=1 $(MAKE) e2e

check: $(READY)  ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m mypy

format: $(READY)  ## rewrite the sources in the common format
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

bench: export HF_HUB_OFFLINE = 1
bench: $(READY)  ## what steps, checkpoints, caches, starts and networks cost against bare loops
	@missed=0; for name in step checkpoint latent_cache warm_start network check validation web estimate; do \
		$(PY) -m testing.benchmarks.bench_$$name || missed=1; done; exit $$missed

clean:  ## remove caches; runs in output/ and .venv stay
	rm -rf .mypy_cache .pytest_cache .ruff_cache build *.egg-info
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +

distclean: clean  ## remove .venv too
	rm -rf $(VENV)
