# The only door: people and CI call the same targets and nothing else.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup components demo test crash lint bench fuzz audit render pictures run constraints clean

VENV    := .venv
BIN     := $(VENV)/bin
PYTHON  ?= $(shell command -v python3.11 || command -v python3)
TORCH   := 2.15.0
export TIDEMARK_CACHE ?= $(HOME)/.cache/tidemark
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export DO_NOT_TRACK := 1
# grafana-client brings urllib3-future, whose wheel takes urllib3's place for every other client; built from source it does not.
export URLLIB3_NO_OVERRIDE := 1
# Two cores are shared by a broker, a trainer and a test run: more threads each only wait for one another.
export OMP_NUM_THREADS ?= 1

help:  ## This list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/.installed  ## Virtual environment with every package (about 2 minutes the first time)

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "setup: expected Python 3.11 or newer as python3, got $$($(PYTHON) --version 2>&1); install it or set PYTHON=" >&2; exit 1; }
	@if [ ! -x $(BIN)/python ]; then \
	  site=; $(PYTHON) -c 'import torch' 2>/dev/null && site=--system-site-packages || true; \
	  echo "setup: virtual environment in $(VENV)"; \
	  $(PYTHON) -m venv $$site $(VENV) 2>/dev/null || { \
	    echo "setup: python3-venv is missing; installing it"; \
	    if [ "$$(id -u)" = 0 ]; then apt-get -qq update && apt-get -qq install -y --no-install-recommends python3-venv >/dev/null; \
	    else echo "setup: not root: install the Debian package python3-venv, then call make again" >&2; exit 1; fi; \
	    rm -rf $(VENV); $(PYTHON) -m venv $$site $(VENV); }; \
	fi
	@echo "setup: Python packages as constraints.txt pins them"
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt \
	  --no-binary urllib3-future --requirement requirements.txt
	@$(BIN)/python -c 'import torch' 2>/dev/null || { \
	  echo "setup: PyTorch $(TORCH), CPU build if pip's configuration offers one"; \
	  $(BIN)/python -m pip install --quiet --constraint constraints.txt "torch==$(TORCH)+cpu" 2>/dev/null || { \
	    echo "setup: no CPU build on offer; taking the CUDA build (2.5 GB to load, 4.8 GB on disk)"; \
	    $(BIN)/python -m pip install --quiet --constraint constraints.txt "torch==$(TORCH)"; }; }
	@$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $@

components: setup  ## Real servers for the tests: Kafka, Prometheus, Kubernetes (where they can be had)
	@bash tests/setup_components.sh

demo: setup  ## The whole loop on embedded parts: drift, alarm, retraining, promotion, quiet again (under 3 minutes)
	@$(BIN)/tidemark demo $(ARGS)

test: components lint  ## Everything that is checked, as CI does; ARGS="tests/unit -k words" for some of it
	@$(BIN)/python -m $(if $(strip $(ARGS)),pytest,tests.streams) -m "not gpu" $(ARGS)

crash: components  ## The service killed 1,000 times on a real broker (about 20 minutes); TIDEMARK_KILLS, TIDEMARK_SEED
	@TIDEMARK_REQUIRE=all TIDEMARK_KILLS=$${TIDEMARK_KILLS:-1000} TIDEMARK_DAMAGES=$${TIDEMARK_DAMAGES:-1000} \
	  $(BIN)/python -m pytest -s tests/crash/test_random_kills.py tests/crash/test_damage.py $(ARGS)

lint: setup  ## Form, types and the direction of imports
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports --no-cache >/tmp/tidemark-imports.$$$$ 2>&1 && rm -f /tmp/tidemark-imports.$$$$ || { cat /tmp/tidemark-imports.$$$$; rm -f /tmp/tidemark-imports.$$$$; exit 1; }

bench: setup  ## Every benchmark as a ratio beside its target
	@$(BIN)/python -m benchmarks $(ARGS)

SECONDS ?= 60
fuzz: setup  ## Every fuzz target for so long: make fuzz SECONDS=600 TARGETS="decode http"; found inputs lie in .fuzz/
	@mkdir -p .fuzz; for target in $${TARGETS:-$$(ls tests/fuzz/corpus)}; do \
	  mkdir -p .fuzz/$$target; echo "fuzz: $$target for $(SECONDS) s"; \
	  $(BIN)/python -m tests.fuzz.drive $$target -max_total_time=$(SECONDS) -timeout=30 -rss_limit_mb=3000 -max_len=20000 \
	    -artifact_prefix=.fuzz/$$target- .fuzz/$$target >.fuzz/$$target.log 2>&1 || { \
	    echo "fuzz: $$target found something; see .fuzz/$$target.log" >&2; exit 1; }; done

AUDIT := $(TIDEMARK_CACHE)/audit
audit: $(VENV)/.installed  ## Known vulnerabilities of the pinned packages, by pip-audit in an environment of its own
	@[ -x $(AUDIT)/bin/pip-audit ] || { $(PYTHON) -m venv $(AUDIT) && $(AUDIT)/bin/python -m pip install --quiet "pip-audit>=2.7,<3"; } \
	  >/dev/null 2>&1 || { echo "audit: pip-audit cannot be installed (no package index in reach): nothing was audited" >&2; exit 2; }
	@$(AUDIT)/bin/python -c 'import urllib.request as u; u.urlopen("https://pypi.org/pypi/pip/json", timeout=10)' 2>/dev/null || { \
	  echo "audit: the advisories of pypi.org cannot be reached: nothing was audited" >&2; exit 2; }
	@$(AUDIT)/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict --progress-spinner off

render: setup  ## Rewrite the generated pages; read the difference
	@$(BIN)/python -m dashboards.render
	@$(BIN)/python -m detectors.methods > docs/detectors.md

pictures: components  ## Take the pictures of README and docs anew, from a real run (about 4 minutes)
	@$(BIN)/python -m docs.pictures.make

run: setup  ## The service: make run CONFIG=tidemark.yaml
	@$(BIN)/tidemark run -c $(CONFIG)

constraints: setup  ## Resolve every package anew into constraints.txt (torch's CUDA packages stay out)
	@$(BIN)/python -m pip install --quiet uv
	@$(BIN)/uv pip compile --quiet --python-version 3.11 --no-header --no-annotate \
	  --no-emit-package torch requirements.txt -o constraints.txt

clean:  ## Remove what was installed and cached in the checkout
	@rm -rf $(VENV) .mypy_cache .ruff_cache .hypothesis build dist
