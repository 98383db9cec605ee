# Each target makes its own virtual environment in .venv and installs what it needs into it.
PYTHON ?= python3
# Naming the version exactly keeps a plain CPU machine from fetching the newest CUDA build.
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
STEPS ?= 60

.PHONY: run test lint curves clean

run: $(VENV)/.installed
	$(BIN)/mpcompile models/gpt.py --output build/gpt.mp --force
	$(BIN)/mpcompile run models/gpt.py --steps $(STEPS)

# Each worker begins with half of the tests in a row, so what a module makes once is made once.
test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

curves: $(VENV)/.installed-dev
	$(BIN)/python -m bench.numerics.curves

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable .
	mkdir -p build
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build
