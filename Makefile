# `make demo` and `make test` set up all they need in .venv, and nothing outside this folder.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-dev

.PHONY: demo test check lint format types wheel plugins

demo: $(VENV)/.installed-demo
	$(BIN)/dnd run

# One thread each: torch's threads would wait for each other where tests share the cores.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

check: lint format types wheel

lint: $(STAMP)
	$(BIN)/ruff check .

format: $(STAMP)
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

wheel: $(STAMP)
	$(BIN)/python -m hatchling build -t wheel

plugins: $(STAMP)
	$(BIN)/python .ci/plugins

# What an extra of pyproject.toml names: `demo` what the demo needs, `dev` all that tests and checks need.
$(VENV)/.installed-%: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo 'Python 3.11 or later is needed; name one with: make PYTHON=python3.12 ...' >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo 'Installing dnd[$*] into $(VENV): about 2 GB and some minutes with the CPU build of torch, more with a CUDA build.'
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[$*]'
	@touch $@
