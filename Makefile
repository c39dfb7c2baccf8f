# Everything runs from a virtual environment that the first target to need it creates.
# Override on the command line: make test PYTHON=python3.12 VENV=/tmp/chipnet-venv JOBS=8
PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2

# Threads that wait by spinning slow each other down a hundredfold where cores are shared with other work.
export OMP_WAIT_POLICY ?= PASSIVE

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := test
.PHONY: demo test lint types docs unit format clean
# `test` ends with pytest's summary line, also under `make -j`.
.NOTPARALLEL:

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	# The pip bundled with early 3.10 releases cannot install a pyproject-only project in editable mode.
	$(BIN)/python -m pip install --upgrade 'pip>=21.3'
	# One command for all: torchvision bounds the torch it works with, so pip must choose the two together.
	$(BIN)/python -m pip install -e '.[dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/chipnet prune --data digits --model resnet8 --budget macs=0.25 --seed 0 --out runs/demo --overwrite

test: lint types docs unit

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

# The site, in build/site: from the same docs and docstrings; a warning is an error.
docs: export NO_MKDOCS_2_WARNING := 1
docs: $(STAMP)
	$(BIN)/mkdocs build --strict --quiet

# One thread per worker: the networks of the tests are tiny, and workers that share cores only wait for each other.
unit: export OMP_NUM_THREADS := 1
unit: export MKL_NUM_THREADS := 1
unit: $(STAMP)
	# loadgroup: tests of one captured network run in one worker, which captures it once.
	$(BIN)/pytest -n $(JOBS) --dist loadgroup --doctest-modules src/chipnet tests

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
