# `make` alone lists what there is. The virtual environment is built when it is missing or older than pyproject.toml.
#
#   PYTHON   the Python that builds it, 3.11 or newer                       make lab PYTHON=python3.12
#   EXTRA    what drives the GPU: cpu, cuda12 or cuda13; found by itself    make lab EXTRA=cpu
#   TORCH    the torch that is installed first where there is no GPU        make lab TORCH=$HOME/torch-cpu.whl
#   VENV     where it goes; empty: use PYTHON and what it has installed     make gpu-test VENV=
#   OUT      where gpu-test leaves its log and the measured rows            make gpu-test OUT=/tmp/h200
#   BOOK     the folder that JupyterLab opens; your own copy of notebooks   make lab BOOK=$HOME/labs
#   FLAGS    more arguments for the command behind a target                 make test FLAGS='-k softmax'
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help lab test book bench gpu-test browser-test

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
OUT ?= build/gpu-test
BOOK ?= notebooks
FLAGS ?=

ifeq ($(VENV),)
PY := $(PYTHON)
READY :=
else
PY := $(VENV)/bin/python
READY := $(VENV)/.installed
endif
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))

# The newest CUDA that the driver runs decides. A machine whose nvidia-smi is missing or fails has no GPU to use.
EXTRA ?= $(shell { nvidia-smi 2>/dev/null || :; } | awk -F 'CUDA[A-Z ]* Version: *' \
  'NF > 1 { major = int($$2); exit } END { print (major >= 13 ? "cuda13" : major == 12 ? "cuda12" : "cpu") }')

help: ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/make \1\t\2/p' Makefile | expand -t 20

lab: $(READY) ## open JupyterLab on the student's notebooks
	$(PY) -m jupyterlab --ServerApp.root_dir=$(abspath $(BOOK)) $(if $(filter 0,$(shell id -u)),--allow-root) $(FLAGS)

test: $(READY) ## run every test that needs no browser; those that need a GPU run where there is one
	$(PY) -m pytest -n 2 --dist worksteal $(FLAGS)

book: $(READY) ## make the notebooks from solutions/*.py, worked and student edition, and the README's figures
	$(PY) -m labkernels book $(FLAGS)
	$(PY) docs/picture.py

bench: $(READY) ## time every variant beside its peers; without a GPU, show the recorded figures
	$(PY) -m labkernels bench $(FLAGS)

# Only files that may hold GPU tests (marked so, or for any `device`) are imported: the others may need what a GPU machine lacks,
# Jupyter for one.
gpu-test: $(READY) ## on a GPU: the tests that need it, and the benchmark, recorded under OUT
	@$(PY) -c "import torch; torch.cuda.is_available() or exit('make gpu-test: torch sees no NVIDIA GPU here')"
	@mkdir -p $(OUT); failed=0; \
	$(PY) -m pytest -m gpu $$(grep -rlE --include='test_*.py' 'mark\.gpu|\<device\>' tests) $(FLAGS) 2>&1 | tee $(OUT)/pytest.txt || failed=1; \
	$(PY) -m labkernels bench --record $(OUT) 2>&1 | tee $(OUT)/bench.txt || failed=1; \
	echo "Recorded in $(OUT). $$( [ $$failed = 0 ] && echo Passed || echo FAILED ): $$(tail -n 1 $(OUT)/pytest.txt)"; \
	exit $$failed

gpu-sanitize: $(READY) ## on a GPU: every variant under compute-sanitizer's four tools, tests/compute_sanitizer.py; the table in OUT
	$(PY) tests/compute_sanitizer.py --record $(OUT)/compute_sanitizer.csv $(FLAGS)

browser-test: $(READY) ## work through a lab in a real browser, and keep a screenshot under build/browser
	$(PY) -m pytest tests/browser $(FLAGS)

$(VENV)/.installed: pyproject.toml
	@rm -f $@
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "LabKernels needs Python 3.11 or newer, and $(PYTHON) is not: name one, as in 'make lab PYTHON=python3.12'" >&2; exit 1; }
	@command -v $${CXX:-g++} >/dev/null || { \
	  echo "LabKernels needs a C++ compiler, and $${CXX:-g++} is not there: install g++ (apt install g++)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(if $(filter cpu,$(EXTRA)),$(PY) -m pip install --no-compile $(TORCH))
	$(PY) -m pip install --no-compile -e '.[$(EXTRA),classroom,onnx,serve,test]'
	@touch $@
