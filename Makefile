# Each target makes its own virtual environment in .venv and installs what it needs into it.
PYTHON ?= python3
# Naming the version exactly keeps a plain CPU machine from fetching the newest CUDA build.
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
STEPS ?= 60
VERSION ?=
ARGS ?=

.PHONY: run test test-torch lint curves clean

run: $(VENV)/.installed
	$(BIN)/mpcompile models/gpt.py --output build/gpt.mp --force
	$(BIN)/mpcompile run models/gpt.py --steps $(STEPS)

# Each worker begins with half of the tests in a row, so what a module makes once is made once.
test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 --dist worksteal

# make test-torch VERSION=2.14.1 [ARGS="tests/lower -x"]: the tests on another version of torch, in
# an environment of its own. Without ARGS every test runs, and docs/versions.md gets the row.
test-torch:
	@test -n "$(VERSION)" || { echo "which torch? make test-torch VERSION=2.14.1" >&2; exit 2; }
	$(MAKE) VENV=.venv-$(VERSION) TORCH=torch==$(VERSION) .venv-$(VERSION)/.installed-dev
	.venv-$(VERSION)/bin/python -m bench.robustness.torch_versions $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --num-workers 2
	$(BIN)/lint-imports

curves: $(VENV)/.installed-dev
	$(BIN)/python -m bench.numerics.curves

# Python compiles the modules that are used when they are used; those of all packages take 40 s.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile "$(TORCH)"
	$(BIN)/python -m pip install --quiet --no-compile --editable .
	mkdir -p build
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --no-compile --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) .venv-* build
