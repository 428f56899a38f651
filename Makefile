# make demo [SCAN=path]   install into .venv, run the pipeline on a phantom (or your scan)
# make test               install the test extra, run the tests
# make lint               ruff and mypy
# make weights            train the shipped weights anew: five folds of both stages, then all patients (hours on a CPU)
# make clean              remove the environment and the demo's output
PYTHON ?= python3
VENV   ?= .venv
OUT    ?= demo-out
BIN    := $(VENV)/bin

.PHONY: demo test lint weights clean

demo: $(VENV)/.installed
	@"$(BIN)/tumorlens" demo --out "$(OUT)" $(if $(SCAN),--scan "$(SCAN)")

test: $(VENV)/.installed-test
	"$(BIN)/python" -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev
	"$(BIN)/ruff" check .
	"$(BIN)/ruff" format --check .
	"$(BIN)/mypy"

# The data as MODEL_CARD.md lists them: DATASETS/brisc, DATASETS/figshare, DATASETS/volumes, DATASETS/templates and, if it
# is there, DATASETS/not_brain. A call that was stopped goes on when it is repeated.
DATASETS ?= datasets
INIT     ?= imagenet
RUNS     ?= runs
WORKERS  ?= 1
lens     := "$(BIN)/tumorlens"
volumes   = --data data/indexes/volumes.csv@$(DATASETS)/volumes --data data/indexes/healthy.csv@$(DATASETS)/templates
strange   = $(if $(wildcard $(DATASETS)/not_brain),--not-brain $(DATASETS)/not_brain)
go_on     = $(if $(wildcard $(@D)/checkpoints/last.ckpt),--resume)
fast      = --duplicates drop --freeze-stem --workers $(WORKERS)
stage1    = --data $(DATASETS)/brisc $(volumes) $(strange) $(fast)
stage2    = --data $(DATASETS)/brisc --data $(DATASETS)/figshare $(volumes) $(fast)

weights: $(RUNS)/classification/classifier.safetensors $(RUNS)/segmentation/segmenter.safetensors

$(RUNS)/cv/classification/report.json: | $(VENV)/.installed
	$(lens) crossval classification $(stage1) --init $(INIT) -o $(@D)

$(RUNS)/classification/classifier.safetensors: $(RUNS)/cv/classification/report.json
	$(lens) train classification $(stage1) --init $(INIT) --out-of-fold $(RUNS)/cv/classification $(go_on) -o $(@D)

$(RUNS)/cv/segmentation/report.json: $(RUNS)/cv/classification/report.json
	$(lens) crossval segmentation $(stage2) --init '$(RUNS)/cv/classification/fold-{fold}/classifier.safetensors' -o $(@D)

$(RUNS)/segmentation/segmenter.safetensors: $(RUNS)/cv/segmentation/report.json $(RUNS)/classification/classifier.safetensors
	$(lens) train segmentation $(stage2) --init $(RUNS)/classification/classifier.safetensors \
	  --out-of-fold $(RUNS)/cv/segmentation $(go_on) -o $(@D)

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
