# Each target sets up what it needs from nothing: virtual environment, packages, Cython extensions.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
EVALUATORS := widerface_evaluate wider_openimagespersonface_evaluate

.PHONY: help demo test test-cuda test-reference build lint bench clean

help:
	@echo "make demo    find faces and persons in the sample photos, images in demo/"
	@echo "make test    run the tests"
	@echo "make test-cuda    run the tests that need a CUDA device; skipped without one"
	@echo "make test-reference    run the tests that need the folder RETINAFACE_REFERENCE"
	@echo "make build   compile the Cython extensions"
	@echo "make lint    check style"
	@echo "make bench   measure speed; tables in benchmarks/results/"
	@echo "make clean   remove what was built"

$(INSTALLED): requirements.txt requirements-dev.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	touch $@

build: $(INSTALLED)
	for folder in $(EVALUATORS); do (cd $$folder && $(abspath $(BIN))/python setup.py --quiet build_ext --inplace) || exit 1; done

demo: $(INSTALLED)
	$(BIN)/python detect.py --save_folder demo

test: build
	$(BIN)/python -m pytest -rs

test-cuda: build
	$(BIN)/python -m pytest -rs tests/test_cuda.py

test-reference: build
	$(BIN)/python -m pytest -rs -m reference

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: build
	for script in benchmarks/bench_*.py; do $(BIN)/python $$script || exit 1; done

clean:
	rm -rf $(VENV) build */build .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -f models/*.so $(EVALUATORS:%=%/*.so)
