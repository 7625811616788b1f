# make demo   set up, then the main job on real data: a router for a 1.5B model on traffic of eleven kinds (runs/demo)
# make demo-small   the published recipe with a 135M model, where routing does not pay (runs/small)
# make demo-full   the demo with more samples, three seeds and curves: the README's figures (runs/full)
# make test   set up, then run the test suite
# make test-gpu   the same invariants on a GPU
# make test-slow   set up, then run the tests with larger models (270M and 1.5B: 7 GiB of memory; downloads 1.3 GB once)
# make test-families   every family of tests/families.py, tiny, under each attention (10 minutes)
# make test-versions   the suite with the newest transformers that is allowed
# make lint   set up, then check style and types
# make docs   the documentation as a site (site/index.html)
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
export TOKENIZERS_PARALLELISM := false

.PHONY: setup demo demo-small demo-full test test-slow test-families test-versions test-gpu lint docs clean-demo
.DELETE_ON_ERROR:

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	@echo "setting up $(VENV): packages from PyPI (2.7 GB on disk), two to ten minutes; pip is quiet meanwhile"
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

# Every stage keeps what it has finished: stop it whenever you like, the same command goes on.
demo: $(READY)
	@echo "make demo: fetches 1 GB once (a model of 1.5 billion parameters, questions), then works about 25 minutes on two cores with AVX-512 BF16 (less with AMX, much longer without both);"
	@echo "8 GB of memory, 6 GB of disk. Stop it whenever you like: the same command goes on. make demo-small is for less."
	$(PY) -m router run configs/demo

demo-small: $(READY)
	@echo "make demo-small: fetches 240 MB once (a model of 135 million parameters, questions), then works about 12 minutes on two cores, less with AVX-512 BF16."
	$(PY) -m router run configs/small

FULL := --data runs/full/data
demo-full: $(READY)
	$(PY) -m data prepare --config configs/demo/data.yaml --out runs/full/data --calibration.size 800 --test.size 1200
	$(PY) -m search --config configs/demo/search.yaml $(FULL) --out runs/full/table
	for seed in 0 1 2; do \
	  $(PY) -m train --config configs/demo/train.yaml $(FULL) --records runs/full/table \
	    --seed_everything $$seed --out runs/full/router-$$seed || exit $$?; \
	  $(PY) -m train calibrate --config configs/demo/calibrate.yaml $(FULL) --records runs/full/table \
	    --static runs/full/table --router runs/full/router-$$seed || exit $$?; \
	done
	$(PY) -m eval curves --config configs/demo/curves.yaml
	$(PY) -m eval --config configs/demo/eval.yaml $(FULL) --records runs/full/table --router runs/full/router-0 \
	  --out runs/full/eval --control_samples 100

test: $(READY)
	HF_HUB_OFFLINE=1 $(PY) -m pytest -n 2 --dist loadfile -m "not slow and not families"

test-slow: $(READY)
	HF_HUB_OFFLINE=1 $(PY) -m pytest -m slow --durations=0

test-families: $(READY)
	HF_HUB_OFFLINE=1 $(PY) -m pytest -n 2 tests/test_families.py

# The invariants of views and executor on a GPU, where there is one.
test-gpu: $(READY)
	@if $(PY) -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; \
	then $(PY) -m pytest tests/gpu_checks.py; \
	else echo "test-gpu: skipped, torch sees no CUDA device here"; fi

# The suite with the newest transformers that is allowed; constraints.txt pins the oldest one.
NEWEST := .versions/newest
test-versions: $(READY)
	rm -rf $(NEWEST)
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --target $(NEWEST) 'peft>=0.21' 'transformers>=5.23,<6'
	$(PY) -c 'import sys; sys.path.insert(0, "$(NEWEST)"); import transformers; print("transformers", transformers.__version__)'
	PYTHONPATH=$(CURDIR)/$(NEWEST) HF_HUB_OFFLINE=1 $(PY) -m pytest -n 2 --dist loadfile -m "not slow and not families"

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(PY) -m mypy

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build  # not --quiet: strict mode then counts no warning
	@echo "look at site/index.html"

clean-demo:
	rm -rf runs/demo
