# `make demo` runs the demo, `make test` the tests; both create .venv first.
# PYTHON=python3.12 selects another interpreter (3.11 or newer).
PYTHON ?= python3
VENV   ?= .venv
BEAM   := .venv-beam
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --quiet --disable-pip-version-check
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal

.PHONY: help demo showcase test test-all test-beam lint install install-all docs notebooks shapes gpu gpu-needs clean

help:
	@echo "make demo     train and evaluate a small Chameleon; writes out/demo/report.html (some minutes)"
	@echo "make showcase train and evaluate a Chameleon on pictures in colour; writes out/showcase/report.html (about an hour)"
	@echo "make test     run all tests but the slow ones"
	@echo "make test-all install torch, PEFT and libtpu too (3 GB), and run all tests"
	@echo "make test-beam  create $(BEAM) with Apache Beam, and run its tests"
	@echo "make lint     check format and style"
	@echo "make install  create $(VENV) for the demo and the tests"
	@echo "make docs     build the documentation into out/site/index.html"
	@echo "make notebooks  run the notebooks and store their outputs (some minutes)"
	@echo "make shapes   retrain the notebooks' model (15 minutes)"
	@echo "make gpu      check and benchmark one NVIDIA GPU, without installing anything (see docs/benchmarks)"
	@echo "make clean    remove $(VENV), $(BEAM) and out/"
	@echo "PYTHON=python3.12 selects another interpreter; VENV=folder another environment."

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { echo "$(PYTHON) is older than Python 3.11; choose another with PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --constraint constraints.txt --editable ".[test]"
	@touch $@

install-all: $(VENV)/.installed-all

$(VENV)/.installed-all: $(VENV)/.installed
	$(PIP) install --constraint constraints.txt --editable ".[test-all]"
	@touch $@

demo: install
	$(BIN)/chameleon demo

showcase: install
	$(BIN)/chameleon demo pictures

test: install
	$(PYTEST) -m "not slow"

# The slow tests find what the others compiled.
test-all: export CHAMELEON_TEST_PROGRAMS := $(CURDIR)/$(VENV)/programs
test-all: install-all test
	$(PYTEST) -m "slow and not pod and not beam"
	rm -rf $(VENV)/programs

test-beam: $(BEAM)/.installed
	$(BEAM)/bin/python -m pytest -m beam tests/data_pipeline/test_beam.py

# The pins that Apache Beam needs replace those of constraints.txt.
$(BEAM)/.installed: pyproject.toml constraints.txt constraints-beam.txt
	$(PYTHON) -m venv $(BEAM)
	awk -F '==' 'NR == FNR {own[$$1]} NR == FNR || !($$1 in own)' constraints-beam.txt constraints.txt > $(BEAM)/constraints.txt
	$(BEAM)/bin/python -m pip --quiet --disable-pip-version-check install --constraint $(BEAM)/constraints.txt \
		--editable ".[beam,gcs]" beartype gcp-storage-emulator hypothesis jaxtyping pytest
	@touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

notebooks: install
	$(BIN)/python notebooks/make_notebooks.py $(ARGS)

# The model of the notebooks: one million parameters, trained on coloured shapes.
shapes: install
	$(BIN)/python notebooks/models/shapes.py out/shapes/data
	$(BIN)/chameleon train-text-tokenizer shapes
	$(BIN)/chameleon train-image-tokenizer shapes
	$(BIN)/chameleon prepare shapes
	$(BIN)/chameleon train shapes
	rm -rf notebooks/models/shapes
	$(BIN)/chameleon convert out/shapes/run notebooks/models/shapes --format chameleon --dtype bfloat16

# For a machine with CUDA; installs nothing. ARGS="attention 1b --budget 300" selects stages and limits their time.
gpu:
	$(PYTHON) -m chameleon_jax.bench.gpu --publish docs/benchmarks $(if $(WHEELS),--wheels $(WHEELS)) $(ARGS)

# Prints what `make gpu` needs besides jax, flax, optax and orbax; WHEELS=folder downloads it for this version of Python.
gpu-needs:
	@$(PYTHON) -m chameleon_jax.bench.gpu.needs $(WHEELS)

clean:
	rm -rf $(VENV) $(BEAM) out
