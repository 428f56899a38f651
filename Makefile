# make demo [SCAN=path]   install into .venv, run the pipeline on a phantom (or your scan)
# make test               install the test extra, run the tests
# make lint               ruff and mypy
# make weights            train both stages anew: five folds of both stages, then all patients (hours on a CPU)
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

# The data, as MODEL_CARD.md lists them: DATASETS/brisc, figshare, volumes, templates and, if it is there, not_brain. The
# recipe was chosen in docs/experiments.md. A call that was stopped goes on when it is repeated.
DATASETS ?= datasets
INIT     ?= imagenet
RUNS     ?= runs
WORKERS  ?= 1
lens     := "$(BIN)/tumorlens"
volumes   = --data data/indexes/volumes.csv@$(DATASETS)/volumes --data data/indexes/healthy.csv@$(DATASETS)/templates
strange   = $(if $(wildcard $(DATASETS)/not_brain),--not-brain $(DATASETS)/not_brain)
go_on     = $(if $(wildcard $(@D)/checkpoints/last.ckpt),--resume)
recipe    = --duplicates drop --freeze-stem --size 192 --small-size 160 --epochs 4 --small-epochs 3 --validate-every 4 \
            --workers $(WORKERS)
stage1    = --data $(DATASETS)/brisc $(volumes) $(strange) $(recipe) --transplant 0.05 --turn 0.05
stage2    = --data $(DATASETS)/brisc --data $(DATASETS)/figshare $(volumes) $(recipe) \
            --transplant 0.2 --init $(INIT)
two       = $(RUNS)/segmentation/segmenter.safetensors

weights: $(RUNS)/report/report.json $(RUNS)/classification/classifier.safetensors

$(RUNS)/cv/segmentation/done: | $(VENV)/.installed
	$(lens) crossval segmentation $(stage2) --epoch-slices 3400 --no-measure -o $(@D)
	touch $@

$(RUNS)/cv/classification/done: $(RUNS)/cv/segmentation/done
	$(lens) crossval classification $(stage1) --init '$(RUNS)/cv/segmentation/fold-{fold}/segmenter.safetensors' \
	  --no-measure -o $(@D)
	touch $@

$(RUNS)/report/report.json: $(RUNS)/cv/classification/done
	$(lens) evaluate pipeline --data $(DATASETS)/brisc --protocol p2 --folds all --overwrite -o $(@D) \
	  --classifier '$(RUNS)/cv/classification/fold-{fold}/classifier.safetensors' \
	  --segmenter '$(RUNS)/cv/segmentation/fold-{fold}/segmenter.safetensors'

$(two): $(RUNS)/cv/segmentation/done
	$(lens) train segmentation $(stage2) --epoch-slices 5600 --out-of-fold $(RUNS)/cv/segmentation $(go_on) -o $(@D)

$(RUNS)/classification/classifier.safetensors: $(RUNS)/cv/classification/done $(two)
	$(lens) train classification $(stage1) --init $(two) --out-of-fold $(RUNS)/cv/classification $(go_on) -o $(@D)

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
