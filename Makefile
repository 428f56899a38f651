# make demo [SCAN=path]   install into .venv, run the pipeline on a phantom (or your scan)
# make test               install the test extra, run the tests
# make lint               ruff and mypy
# make clean              remove the environment and the demo's output
PYTHON ?= python3
VENV   ?= .venv
OUT    ?= demo-out
BIN    := $(VENV)/bin

.PHONY: demo test lint clean

demo: $(VENV)/.installed
	@"$(BIN)/tumorlens" demo --out "$(OUT)" $(if $(SCAN),--scan "$(SCAN)")

test: $(VENV)/.installed-test
	"$(BIN)/python" -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev
	"$(BIN)/ruff" check .
	"$(BIN)/ruff" format --check .
	"$(BIN)/mypy"

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "tumorlens needs Python 3.11 or newer; name one with: make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv "$(VENV)" || { rm -rf "$(VENV)"; \
	  echo "the virtual environment could not be made; on Debian and Ubuntu: apt install python3-venv"; exit 2; }

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	"$(BIN)/python" -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	"$(BIN)/python" -m pip install --quiet --disable-pip-version-check -e '.[test]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed-test
	"$(BIN)/python" -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

clean:
	rm -rf "$(VENV)" "$(OUT)"
