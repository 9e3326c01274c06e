# Everything a newcomer needs: `make demo` and `make test` set up all they need in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SOURCES := $(shell git ls-files '*.py' pyproject.toml constraints.txt py.typed 2>/dev/null)

.PHONY: demo demo-auto cluster-demo test lint types format clean

demo: $(STAMP)
	$(BIN)/python examples/demo.py

demo-auto: $(STAMP)
	$(BIN)/python examples/demo_auto.py

cluster-demo: $(STAMP)
	$(BIN)/python examples/cluster_demo.py

test: lint types
	cd tests && ../$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Types are checked against the installed wheel, as a user's project would see them.
types: $(STAMP)
	cd tests && ../$(BIN)/mypy --config-file ../pyproject.toml -p flexpipe

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# torch first and pinned, or a later resolver may choose a CUDA build of several GB.
$(VENV)/.dependencies: constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch build
	$(BIN)/python .ci/requirements.py > $(VENV)/requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -r $(VENV)/requirements.txt
	touch $@

# The wheel, not the checkout: what is tested is what a user gets.
$(STAMP): $(VENV)/.dependencies $(SOURCES)
	rm -rf $(VENV)/wheel build
	$(BIN)/python -m build --quiet --wheel --outdir $(VENV)/wheel .
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --force-reinstall $(VENV)/wheel/*.whl
	rm -rf build
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
