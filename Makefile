# make demo [SCAN=path]   install into .venv, run the pipeline on a phantom (or your scan)
# make test               install the test extra, run the tests that are neither slow nor on real scans
# make test-all           all tests
# make lint               ruff and mypy
# make fuzz               10,000 damaged files for every reader (FUZZ_ARGS: see .venv/bin/python -m tests.fuzz --help)
# make audit              known faults in our code (bandit) and in the installed packages (pip-audit)
# make sbom               write docs/sbom.json, the list of the packages of this environment
# make light              install without extras into an environment of its own, weigh it, run the demo
# make oldest             the smoke test with the oldest supported dependencies, in an environment of its own
# make benchmark          the speed on this machine, compared with plain PyTorch (more: .venv/bin/python -m tests.benchmarks --help)
# make load               the REST service under load on loopback, beside the command
# make weights            train both networks further, from those of version 0.1.0, with a fold held out
# make pictures           write the hashes of their training pictures to the cards of the shipped weights
# make p5                 leave one source out: what to expect of a scanner that the networks have not seen
# make clean              remove the environment and the demo's output
PYTHON ?= python3
VENV   ?= .venv
OUT    ?= demo-out
BIN    := $(VENV)/bin

.PHONY: demo test test-all fuzz lint types audit sbom light oldest benchmark load weights pictures p5 clean

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

fuzz: $(VENV)/.installed-test
	"$(BIN)/python" -m tests.fuzz --cases 10000 $(FUZZ_ARGS)

# What `pip install tumorlens` brings, without extras. LIGHT_MB bounds it.
LIGHT    ?= $(VENV)/light
LIGHT_MB ?= 700
light:
	rm -rf "$(LIGHT)" build && $(PYTHON) -m venv "$(LIGHT)"
	"$(LIGHT)/bin/python" -m pip install --quiet --disable-pip-version-check .
	@du -sm "$(LIGHT)"/lib/python*/site-packages/* | sort -rn | head -12
	@megabytes=$$(du -sm "$(LIGHT)"/lib/python*/site-packages | cut -f1); echo "$$megabytes MB in all"; \
	  [ "$$megabytes" -le $(LIGHT_MB) ] || { echo "more than LIGHT_MB=$(LIGHT_MB)"; exit 1; }
	@! "$(LIGHT)/bin/python" -c "import torch" 2> /dev/null || { echo "PyTorch is among the packages"; exit 1; }
	TUMORLENS_CACHE="$(LIGHT)/cache" "$(LIGHT)/bin/tumorlens" demo --out "$(LIGHT)/demo-out"

oldest: $(VENV)/bin/python
	"$(BIN)/python" tests/oldest.py > "$(VENV)/oldest.txt"
	"$(BIN)/python" -m pip install --quiet --disable-pip-version-check -c "$(VENV)/oldest.txt" -e '.[train,app,dicom-node]' pytest
	OMP_NUM_THREADS=1 "$(BIN)/python" -m pytest -q -o addopts= tests/test_smoke.py

lint: $(VENV)/.installed-dev types
	"$(BIN)/ruff" check .
	"$(BIN)/ruff" format --check .

# pip-audit asks a database on the internet. Without it, all packages are counted as not audited.
audit: $(VENV)/.installed-dev
	"$(BIN)/bandit" -q -c pyproject.toml -r data classification segmentation pipeline
	@"$(BIN)/pip-audit" --local --skip-editable --progress-spinner off > "$(VENV)/audit.txt" 2>&1 || { cat "$(VENV)/audit.txt"; exit 1; }
	@echo "pip-audit: no known faults; $$(grep -c 'could not be audited' "$(VENV)/audit.txt") packages could not be audited"

sbom: $(VENV)/.installed-train
	$(PYTHON) -m venv "$(VENV)/sbom" && "$(VENV)/sbom/bin/pip" install --quiet --disable-pip-version-check 'cyclonedx-bom>=7,<8'
	"$(VENV)/sbom/bin/cyclonedx-py" environment --pyproject pyproject.toml --output-reproducible -o "$(VENV)/sbom.json" "$(BIN)/python"
	"$(BIN)/python" tests/sbom.py < "$(VENV)/sbom.json" > docs/sbom.json

types: $(VENV)/.installed-dev
	@# The folders stand at the top level and are imported as tumorlens.*: mypy needs them in one folder of that name.
	@rm -rf .types && mkdir -p .types/tumorlens && ln -s ../../pipeline/package/__init__.py ../../pipeline/package/py.typed .types/tumorlens/
	@for room in data classification segmentation pipeline; do ln -s ../../$$room .types/tumorlens/$$room; done
	MYPYPATH=.types "$(BIN)/mypy" -p tumorlens

benchmark: $(VENV)/.installed-train
	@"$(BIN)/python" -m tests.benchmarks $(BENCHMARK_ARGS)

load: $(VENV)/.installed
	@"$(BIN)/python" -m tests.benchmarks.service $(BENCHMARK_ARGS)

# The data, as MODEL_CARD.md lists them: DATASETS/brisc, figshare, lgg, web, heads, volumes, templates and, if it is
# there, not_brain. The recipe was chosen in docs/notebook/experiments.md. A call that was stopped goes on when it is
# repeated.
DATASETS ?= datasets
RUNS     ?= runs
WORKERS  ?= 0
FOLD     ?= 1
lens     := "$(BIN)/tumorlens"
strange   = $(if $(wildcard $(DATASETS)/not_brain),--not-brain $(DATASETS)/not_brain)
go_on     = $(if $(wildcard $(@D)/checkpoints/last.ckpt),--resume)
learn     = --duplicates drop --size 192 --workers $(WORKERS) --prepared $(RUNS)/prepared --freeze-stem \
            --small-share 0.7 --small-size 144 --ema 0.995 --augment 0.7 --transplant 0.05 --split holdout --fold $(FOLD)
brisc     = --data $(DATASETS)/brisc
figshare  = --data $(DATASETS)/figshare
lgg       = --data $(DATASETS)/lgg
web       = --data data/indexes/web.csv@$(DATASETS)/web
heads     = --data $(DATASETS)/heads
volumes   = --data data/indexes/volumes.csv@$(DATASETS)/volumes
templates = --data data/indexes/healthy.csv@$(DATASETS)/templates
recipe1   = $(learn) --lr 3e-4 --no-balance --blank 0.05 --turn 0.03 \
            --epochs 24 --validate-every 24 --start-share 0.25 --init $(start)/classifier.safetensors
recipe2   = $(learn) --turn 0.02 --negative-share 0.3 --label-weight 0.3 --start-share 0.25 \
            --epochs 14 --validate-every 14 --init $(start)/segmenter.safetensors
# Targets are what is written last: a run that was cut off has none.
start    := $(RUNS)/start
one      := $(RUNS)/classification/classifier
two      := $(RUNS)/segmentation/segmenter

weights: $(RUNS)/calibrated $(RUNS)/report/report.md

# The weights of version 0.1.0 have learned from BRISC, figshare, the volumes and the templates:
# docs/notebook/experiments.md.
$(start)/%.safetensors:
	@mkdir -p $(@D)
	git show d51f86c:$(stage_of_$*)/weights/$*.json > $(@:.safetensors=.json)
	git show d51f86c:$(stage_of_$*)/weights/$*.safetensors > $@.part && mv $@.part $@
stage_of_classifier := classification
stage_of_segmenter  := segmentation

$(one).json: $(start)/classifier.safetensors | $(VENV)/.installed-train
	$(lens) train classification $(brisc) $(lgg) $(web) $(heads) $(volumes) $(templates) \
	  --rate 1 --rate 1 --rate 4 --rate 1 --rate 2 --rate 1 $(recipe1) $(strange) --epoch-slices 1800 $(go_on) -o $(@D)

$(two).json: $(start)/segmenter.safetensors | $(VENV)/.installed-train
	$(lens) train segmentation $(brisc) $(figshare) $(lgg) $(heads) $(volumes) $(templates) \
	  --outline enhancing --outline enhancing --outline extent --outline sequence --outline enhancing --outline enhancing \
	  --rate 0.7 --rate 0.7 --rate 1.5 --rate 1 --rate 2 --rate 1 $(recipe2) --epoch-slices 1700 $(go_on) -o $(@D)

# The rule for volumes, from held-out stacks of slices.
$(RUNS)/calibrated: $(one).json $(two).json
	$(lens) calibrate $(volumes) $(lgg) --classifier $(one).safetensors --segmenter $(two).safetensors \
	  -o $(one).safetensors
	@touch $@

$(RUNS)/report/report.md: $(one).json $(two).json
	$(lens) evaluate pipeline $(lgg) $(heads) $(volumes) --protocol p6 --overwrite -o $(@D) \
	  --classifier $(one).safetensors --segmenter $(two).safetensors

# The shipped weights are older than the hashes of pictures on cards. Their start, version 0.1.0, had learned from all of
# BRISC, figshare, the volumes and the templates. A training writes them itself.
known = $(subst --data,--start,$(brisc) $(figshare) $(volumes) $(templates))
pictures: | $(VENV)/.installed-train
	"$(BIN)/python" -m tumorlens.data.training.record_pictures classification/weights/classifier.safetensors \
	  $(brisc) $(lgg) $(web) $(heads) $(volumes) $(templates) $(known)
	"$(BIN)/python" -m tumorlens.data.training.record_pictures segmentation/weights/segmenter.safetensors \
	  $(brisc) $(figshare) $(lgg) $(heads) $(volumes) $(templates) $(known)

# Leave one source out (P5): a short run of a classifier that has not seen a source, measured on it.
without_lgg   = $(brisc) $(web) $(heads) $(volumes) $(templates) --rate 1 --rate 4 --rate 1 --rate 2 --rate 1
without_web   = $(brisc) $(lgg) $(heads) $(volumes) $(templates) --rate 1 --rate 1 --rate 1 --rate 2 --rate 1
without_heads = $(brisc) $(lgg) $(web) $(volumes) --rate 1 --rate 1 --rate 4 --rate 2
p5: $(foreach source,lgg web heads,$(RUNS)/p5/$(source)/report/report.md)

.PRECIOUS: $(RUNS)/p5/%/classifier.json
$(RUNS)/p5/%/classifier.json: $(start)/classifier.safetensors | $(VENV)/.installed-train
	$(lens) train classification $(without_$*) $(recipe1) --epoch-slices 250 $(go_on) -o $(@D)

$(RUNS)/p5/%/report/report.md: $(RUNS)/p5/%/classifier.json
	$(lens) evaluate classification $($*) --protocol p5 --overwrite -o $(@D) --classifier $(<:.json=.safetensors)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "tumorlens needs Python 3.11 or newer; name one with: make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv "$(VENV)" || { rm -rf "$(VENV)"; \
	  echo "the virtual environment could not be made; on Debian and Ubuntu: apt install python3-venv"; exit 2; }

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	"$(BIN)/python" -m pip install --quiet --disable-pip-version-check -e '.[app,coco,matlab,volumes]'
	@touch $@

$(VENV)/.installed-train: $(VENV)/.installed
	"$(BIN)/python" -m pip install --quiet --disable-pip-version-check -e '.[train]'
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed-train
	"$(BIN)/python" -m pip install --quiet --disable-pip-version-check -e '.[test]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed-test
	"$(BIN)/python" -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

clean:
	rm -rf "$(VENV)" "$(OUT)"
