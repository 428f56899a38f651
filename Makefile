# make demo [SCAN=path]   install into .venv, run the pipeline on a phantom (or your scan)
# make test               install the test extra, run the tests that are neither slow nor on real scans
# make test-all           all tests
# make lint               ruff and mypy
# make oldest             the smoke test with the oldest supported dependencies, in an environment of its own
# make benchmark          the speed on this machine, compared with plain PyTorch (more: .venv/bin/python -m tests.benchmarks --help)
# make weights            train everything anew: five folds of each network, then all patients (three hours of two CPU cores)
# make clean              remove the environment and the demo's output
PYTHON ?= python3
VENV   ?= .venv
OUT    ?= demo-out
BIN    := $(VENV)/bin

.PHONY: demo test test-all lint types oldest benchmark weights clean

demo: $(VENV)/.installed
	@"$(BIN)/tumorlens" demo --out "$(OUT)" $(if $(SCAN),--scan "$(SCAN)")

# Two processes with a thread each, for the networks of the tests are too small for more threads to help. A file stays in one
# process, so that what its tests share is made once.
TEST_JOBS ?= 2
pytest     = OMP_NUM_THREADS=1 "$(BIN)/python" -m pytest -n $(TEST_JOBS) --dist loadfile

test: $(VENV)/.installed-test
	$(pytest) -m "not slow and not real" $(PYTEST_ARGS)

test-all: $(VENV)/.installed-test
	$(pytest) $(PYTEST_ARGS)

oldest: $(VENV)/bin/python
	"$(BIN)/python" tests/oldest.py > "$(VENV)/oldest.txt"
	"$(BIN)/python" -m pip install --quiet --disable-pip-version-check -c "$(VENV)/oldest.txt" -e . pytest
	OMP_NUM_THREADS=1 "$(BIN)/python" -m pytest -q -o addopts= tests/test_smoke.py

lint: $(VENV)/.installed-dev types
	"$(BIN)/ruff" check .
	"$(BIN)/ruff" format --check .

types: $(VENV)/.installed-dev
	@# The folders stand at the top level and are imported as tumorlens.*: mypy needs them in one folder of that name.
	@rm -rf .types && mkdir -p .types/tumorlens && ln -s ../../pipeline/package/__init__.py ../../pipeline/package/py.typed .types/tumorlens/
	@for room in data classification segmentation pipeline; do ln -s ../../$$room .types/tumorlens/$$room; done
	MYPYPATH=.types "$(BIN)/mypy" -p tumorlens

benchmark: $(VENV)/.installed
	@"$(BIN)/python" -m tests.benchmarks $(BENCHMARK_ARGS)

# The data, as MODEL_CARD.md lists them: DATASETS/brisc, figshare, lgg, volumes, templates, heads and, if it is there, not_brain. The
# recipe was chosen in docs/notebook/experiments.md. A call that was stopped goes on when it is repeated. On a CPU, networks that
# train side by side with a thread each are a quarter faster than one after another: OMP_NUM_THREADS=1 make -j2 weights
DATASETS ?= datasets
INIT     ?= imagenet
RUNS     ?= runs
WORKERS  ?= 0
lens     := "$(BIN)/tumorlens"
volumes   = --data data/indexes/volumes.csv@$(DATASETS)/volumes --data data/indexes/healthy.csv@$(DATASETS)/templates
strange   = $(if $(wildcard $(DATASETS)/not_brain),--not-brain $(DATASETS)/not_brain)
go_on     = $(if $(wildcard $(@D)/checkpoints/last.ckpt),--resume)
learn     = --duplicates drop --size 192 --workers $(WORKERS) --prepared $(RUNS)/prepared
draw      = $(learn) --init $(INIT) --epochs 4 --validate-every 4 --small-epochs 2 --small-size 128
# A segmenter that also names the tumor, and sees healthy slices as they come: stage one starts from its encoder.
stage0    = --data $(DATASETS)/brisc --data $(DATASETS)/figshare $(volumes) $(draw) \
            --freeze-stem --augment 0.5 --transplant 0.05 --turn 0.05 --label-weight 0.3
stage1    = --data $(DATASETS)/brisc $(volumes) $(strange) $(learn) --freeze-stem \
            --epochs 2 --validate-every 2 --small-epochs 1 --small-size 160 --augment 0.7 --transplant 0.05 --turn 0.05
# Healthy slices of all sources keep the segmenter from marking something where there is nothing. An --outline for each --data.
stage2    = --data $(DATASETS)/brisc --data $(DATASETS)/figshare --data $(DATASETS)/lgg $(volumes) --data $(DATASETS)/heads \
            --outline enhancing --outline enhancing --outline extent --outline enhancing --outline enhancing --outline sequence \
            $(draw) --augment 0.3 --transplant 0 --turn 0 --negative-share 0.3
cv0      := $(RUNS)/cv/encoder
cv1      := $(RUNS)/cv/classification
cv2      := $(RUNS)/cv/segmentation
# Targets are what is written last: a run that was cut off has none.
zero     := $(RUNS)/encoder/segmenter
one      := $(RUNS)/classification/classifier
two      := $(RUNS)/segmentation/segmenter
folds0   := $(foreach k,0 1 2 3 4,$(cv0)/fold-$(k)/segmenter.json)
folds1   := $(foreach k,0 1 2 3 4,$(cv1)/fold-$(k)/classifier.json)
folds2   := $(foreach k,0 1 2 3 4,$(cv2)/fold-$(k)/segmenter.json)

weights: $(two).json $(RUNS)/report/report.md $(one).json

$(folds0): $(cv0)/fold-%/segmenter.json: | $(VENV)/.installed
	$(lens) crossval segmentation $(stage0) --epoch-slices 3200 --folds $* --no-measure -o $(cv0)

$(folds1): $(cv1)/fold-%/classifier.json: $(cv0)/fold-%/segmenter.json
	$(lens) crossval classification $(stage1) --init '$(cv0)/fold-{fold}/segmenter.safetensors' \
	  --folds $* --no-measure -o $(cv1)

$(folds2): $(cv2)/fold-%/segmenter.json: | $(VENV)/.installed
	$(lens) crossval segmentation $(stage2) --epoch-slices 3200 --folds $* --no-measure -o $(cv2)

$(zero).json: $(folds0)
	$(lens) train segmentation $(stage0) --epoch-slices 4400 --out-of-fold $(cv0) $(go_on) -o $(@D)

$(two).json: $(folds2)
	$(lens) train segmentation $(stage2) --epoch-slices 3200 --out-of-fold $(cv2) $(go_on) -o $(@D)

$(one).json: $(folds1) $(zero).json
	$(lens) train classification $(stage1) --init $(zero).safetensors --out-of-fold $(cv1) $(go_on) -o $(@D)

$(RUNS)/report/report.md: $(folds1) $(folds2)
	$(lens) evaluate pipeline --data $(DATASETS)/brisc --protocol p2 --folds all --overwrite -o $(@D) \
	  --classifier '$(cv1)/fold-{fold}/classifier.safetensors' --segmenter '$(cv2)/fold-{fold}/segmenter.safetensors'

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
