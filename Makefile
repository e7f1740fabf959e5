# `make` alone lists the targets.
SHELL  := /bin/bash
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help setup reproduce test slow export lab docs clean

help:       ## list the targets
	@grep -hE '^[a-z]+: .*##' $(MAKEFILE_LIST) | awk -F ' *## *' '{split($$1, a, ":"); printf "make %-10s %s\n", a[1], $$2}'

setup: $(VENV)/.done ## create .venv with the tested versions (about 3 minutes, 2.9 GB; a second call does nothing)

$(VENV)/.done: settings.ini setup.py constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v >= (3, 11) else "Python 3.11 or newer is needed, this is %d.%d: set PYTHON=/path/to/python3.11" % v)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the tested versions into $(VENV) (about 3 minutes, 2.9 GB); the whole log is $(VENV)/setup.log"
	@set -o pipefail; $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -c constraints.txt \
	  -e '.[run,dev,eval,rec,words,onnx,chat]' 2>&1 | tee $(VENV)/setup.log | awk '/^Collecting/ { n++; if (n % 20 == 0) print "  " n " packages found" } \
	  /^Installing collected/ { print "  installing them (the longest part)" } /^ERROR|^error/ { print } { fflush() }' \
	  || { tail -n 20 $(VENV)/setup.log; exit 1; }
	@$(BIN)/python -c 'import torch, transformers, wandb, papermill, nbdev, lm_eval, papers_lib'
	@touch $@

reproduce: setup ## run every paper at preset tiny, write the scoreboard, print its path last
	$(BIN)/papers run all --preset tiny --jobs 2
	@$(BIN)/papers scoreboard

test: setup ## check the export, the notebooks and the published results, lint, run the tests that are not marked slow
	$(BIN)/python tests/check_export.py
	$(BIN)/ruff check papers_lib nbs data_prep tests setup.py
	$(BIN)/papers verify
	WANDB_MODE=disabled OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers $(shell nproc 2>/dev/null || echo 2)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile -m 'not slow' tests

slow: setup ## run the tests marked slow: every cell of every claim, at a size that teaches nothing (minutes a paper)
	OMP_NUM_THREADS=1 $(BIN)/pytest -m slow tests

export: setup ## write papers_lib/ from the notebooks and clean them
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean

lab: setup ## open the notebooks in JupyterLab on 127.0.0.1
	$(BIN)/jupyter lab --ip=127.0.0.1 --notebook-dir=nbs

docs: setup ## build the site from the committed outputs into _site/
	$(BIN)/sphinx-build -q -b html -c nbs nbs _site
	@echo _site/index.html

clean: ## remove what the targets made (never results/ and never the cache)
	rm -rf $(VENV) runs _site _proc _docs papers_lib.egg-info .pytest_cache .ruff_cache .hypothesis
