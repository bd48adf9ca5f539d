# Each target makes what it needs: a virtual environment in .venv with edgeclip in it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test docs lint types wheel-test aarch64-check aarch64-run clean

demo: $(VENV)/.demo
	$(BIN)/edgeclip demo

# Names at its end what it skipped, and the Debian packages that it wants for it.
test: $(VENV)/.dev
	$(BIN)/pytest $(PYTEST_ARGS)

# The documents as a site in site/, which needs no network to be read; open site/index.html.
docs: $(VENV)/.docs
	$(BIN)/mkdocs build --strict --quiet

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

# Build wheel and sdist, install the wheel in an empty environment, label an image from there.
wheel-test: $(VENV)/.dev
	$(BIN)/python tests/wheel_check.py

# Resolve what a Jetson would install: wheels only, for JetPack 5 to 7.
aarch64-check: $(VENV)/.dev
	$(BIN)/python tests/aarch64_wheels.py

# The device side on 64-bit Arm under emulation, as root; needs qemu-user-static, proot and mmdebstrap. Ten minutes.
aarch64-run: $(VENV)/.dev
	$(BIN)/python -u tests/aarch64_run.py

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --editable ".[demo]"
	touch $@

$(VENV)/.docs: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --editable ".[docs]"
	touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@ $(VENV)/.demo $(VENV)/.docs

clean:
	rm -rf $(VENV) build dist site demo-out runs .pytest_cache .mypy_cache .ruff_cache
