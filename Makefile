# Each target sets up .venv first. PYTHON chooses the interpreter, 3.11 or newer:
# make PYTHON=python3.12 demo
PYTHON ?= python3
BIN := .venv/bin
RUN ?= runs/demo
SEED ?= 0
# setuptools warns of every editable installation; to compile all modules, most of which nobody
# imports, takes a minute, and Python compiles those that are imported
INSTALL := PYTHONWARNINGS="ignore:Editable installation" \
	$(BIN)/python -m pip install --quiet --no-compile

# Images of containers like to set it, and then every start of Python compiles torch and timm anew
unexport PYTHONDONTWRITEBYTECODE

NOTEBOOKS := $(wildcard notebooks/*.ipynb notebooks/solutions/*.ipynb)

.PHONY: help setup demo test lab course figures bench gpu gpu-train browser site slides bundle \
	colab oldest clean

help:  ## say what each target does
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*## /	/'

setup: .venv/ready  ## .venv with the exact versions of requirements.txt, and `dino` in .venv/bin

.venv/ready: requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
		"Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(INSTALL) --upgrade pip
	$(INSTALL) -r requirements.txt
	$(INSTALL) --no-deps -e .
	touch $@

demo: setup  ## train on the embedded dataset, show what the teacher sees (RUN=folder SEED=n)
	$(BIN)/dino train --preset demo --seed $(SEED) --output-dir $(RUN) --resume auto
	$(BIN)/dino report $(RUN)

test: setup  ## every test, every notebook and every solution; what CI runs
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder \
		--nbval tests $(NOTEBOOKS)

course: setup  ## the notebooks again from notebooks/masters, and their outputs
	$(BIN)/python notebooks/build.py
	OMP_NUM_THREADS=1 $(BIN)/python notebooks/execute.py $(NOTEBOOKS)
	$(BIN)/python notebooks/build.py

lab: setup  ## the notebooks in JupyterLab
	$(BIN)/jupyter lab --notebook-dir notebooks

figures: setup  ## make the pictures in figures/ again, from the teachers that ship
	$(BIN)/python figures/make.py

bench: setup  ## speed and memory beside lightly and the official recipe, on an idle machine
	$(INSTALL) -e '.[bench]'
	$(BIN)/python benchmarks/bench.py --out runs/bench.json

gpu: setup  ## ten minutes on a GPU: its tests, speed beside others, a short training, a report
	$(INSTALL) -e '.[bench]'
	$(BIN)/python benchmarks/gpu.py --out runs/gpu

gpu-train: setup  ## an hour's training on a GPU, in pieces of ten minutes (DATA=folder)
	$(BIN)/python benchmarks/gpu_train.py --out runs/gpu-train $(if $(DATA),--data $(DATA))

browser: setup  ## run the notebooks in JupyterLab in a browser; needs Chromium or Chrome
	$(INSTALL) -e '.[browser]'
	$(BIN)/python tests/browser.py --out runs/browser

site: setup  ## the course as a web site in runs/site, for GitHub Pages or to read offline
	$(INSTALL) -e '.[site]'
	$(BIN)/python site/make.py

slides: setup  ## slides of the notebooks, HTML and PDF; needs npm, and Chromium or Chrome
	$(BIN)/python slides/make.py

bundle: site  ## the whole course for machines like this one without internet (CPU=1: no CUDA)
	$(BIN)/python bundle/make.py $(if $(CPU),--cpu)

# not from .venv: these have versions of their own
colab:  ## the notebooks as Colab runs them, with the packages of its image; Colab has Python 3.13
	$(PYTHON) -m venv .venv-colab
	.venv-colab/bin/python -m pip install --quiet -r requirements-colab.txt
	.venv-colab/bin/python tests/colab.py

oldest:  ## the tests with the oldest versions that pyproject.toml takes; Python 3.11 has them
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --constraint requirements-oldest.txt --editable '.[test]'
	OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest -n 2 tests

clean:  ## remove the environments and runs
	rm -rf .venv .venv-colab .venv-oldest runs
