# The whole set-up: `make demo` runs the main job, `make test` the tests. Both create .venv first.
# PYTHON=python3.12 selects another interpreter (3.11 or newer).
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --quiet --disable-pip-version-check
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal

.PHONY: help demo test test-all lint install install-all notebooks shapes gpu gpu-needs clean

help:
	@echo "make demo     train and judge a small Chameleon; opens with out/demo/report.html (some minutes)"
	@echo "make test     run the tests, but for the slow ones (some 8 minutes on two cores)"
	@echo "make test-all install torch, PEFT and libtpu too (3 GB) and run all tests"
	@echo "make lint     check format and style"
	@echo "make install  create $(VENV) with what the demo and the tests need"
	@echo "make notebooks  run the notebooks anew and store them with what they show (some minutes)"
	@echo "make shapes   train the notebooks' model anew (some 15 minutes)"
	@echo "make gpu      check and measure one NVIDIA GPU with what is installed there (see docs/benchmarks)"
	@echo "make clean    remove $(VENV) and out/"
	@echo "PYTHON=python3.12 selects another interpreter; VENV=folder another place."

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

test: install
	$(PYTEST) -m "not slow"

test-all: install-all test
	$(PYTEST) -m "slow and not pod"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

notebooks: install
	$(BIN)/python notebooks/make_notebooks.py $(ARGS)

# The model that the notebooks come with: one million parameters that know coloured shapes.
shapes: install
	$(BIN)/python notebooks/models/shapes.py out/shapes/data
	$(BIN)/chameleon train-text-tokenizer shapes
	$(BIN)/chameleon train-image-tokenizer shapes
	$(BIN)/chameleon prepare shapes
	$(BIN)/chameleon train shapes
	rm -rf notebooks/models/shapes
	$(BIN)/chameleon convert out/shapes/run notebooks/models/shapes --format chameleon --dtype bfloat16

# On a machine with CUDA: nothing is installed. ARGS="attention 1b --budget 300" selects and limits stages.
gpu:
	$(PYTHON) -m chameleon_jax.bench.gpu --publish docs/benchmarks $(if $(WHEELS),--wheels $(WHEELS)) $(ARGS)

# What `make gpu` needs beside jax, flax, optax and orbax; WHEELS=folder downloads it for this version of Python.
gpu-needs:
	@$(PYTHON) -m chameleon_jax.bench.gpu.needs $(WHEELS)

clean:
	rm -rf $(VENV) out
