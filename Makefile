# Everything runs in .venv, made on first use; paths are relative, so a checkout may lie in a folder with spaces.
PYTHON ?= python3
BIN := .venv/bin
RUN := $(BIN)/python -m
INSTALLED := .venv/.installed
INSTALLED_DEV := .venv/.installed-dev

export TOKENIZERS_PARALLELISM ?= false
# DeepSpeed builds no kernel when it is installed; on a CPU none is needed.
export DS_BUILD_OPS ?= 0

# Two files of tests at a time, in the order in which they are collected: those with slow tests first.
PARALLEL ?= -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: quickstart test test-fast check lint types docs golden clean

quickstart: $(INSTALLED)
	$(RUN) zephyrctl run --recipe tiny

test: $(INSTALLED_DEV)
	$(RUN) pytest $(PARALLEL)

test-fast: $(INSTALLED_DEV)
	$(RUN) pytest $(PARALLEL) -m "not slow"

check: lint types test docs

lint: $(INSTALLED_DEV)
	$(RUN) ruff check
	$(RUN) ruff format --check

types: $(INSTALLED_DEV)
	$(RUN) mypy

docs: $(INSTALLED_DEV)
	$(RUN) mkdocs build --strict --quiet

# Golden files and the CLI reference, made anew; read the diff before you commit it.
golden: $(INSTALLED_DEV)
	$(RUN) pytest -m "not slow" --update-golden

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(RUN) pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(RUN) pip install --quiet --disable-pip-version-check -c constraints.txt --editable .
	touch $@

$(INSTALLED_DEV): $(INSTALLED)
	$(RUN) pip install --quiet --disable-pip-version-check -c constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv runs site dist build .pytest_cache .mypy_cache .ruff_cache
