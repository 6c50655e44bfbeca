# Each target sets up .venv first. PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
BIN := .venv/bin
RUN ?= runs/demo
SEED ?= 0

.PHONY: setup demo test browser lab figures bench clean

setup: .venv/ready

.venv/ready: requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps -e .
	touch $@

demo: setup  ## train DINO on the embedded dataset and show what the teacher sees
	$(BIN)/dino train --preset demo --seed $(SEED) --output-dir $(RUN) --resume auto
	$(BIN)/dino report $(RUN)

# two processes of one thread each: the networks are too small to share. The notebooks that train have both cores
LIVE := $(wildcard notebooks/03_* notebooks/04_* notebooks/05_*)
OTHERS := $(filter-out $(LIVE), $(wildcard notebooks/*.ipynb notebooks/solutions/*.ipynb))

test: setup  ## every test, every notebook and every solution
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --nbval $(OTHERS)
	$(BIN)/python -m pytest --nbval $(LIVE)

browser: setup  ## the notebooks in JupyterLab, in a browser: needs Chromium or Chrome on the machine
	$(BIN)/python -m pip install --quiet -e '.[browser]'
	$(BIN)/python tests/browser.py --out runs/browser

lab: setup
	$(BIN)/jupyter lab --notebook-dir notebooks

figures: setup  ## the pictures in figures/, from the shipped teacher
	$(BIN)/python figures/make.py

bench: setup  ## speed and memory beside lightly and the official recipe; wants the machine for itself
	$(BIN)/python -m pip install --quiet -e '.[bench]'
	$(BIN)/python benchmarks/bench.py --out runs/bench.json

clean:
	rm -rf .venv runs
