# Needs python3 (3.11 or newer, with venv) and make; everything else goes into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev

# Every Ray worker imports these. They are compiled once; to compile all that is installed takes longer, and is for tests.
IMPORTED := raydet.engine.process, raydet.launch.ray_train, raydet.report.write, raydet.track.mlflow, \
            raydet.tune.ray_tune, pandas, torch._dynamo

# Tests with a Ray of their own want the machine for themselves.
QUICK := not slow and not compile and not exhaustive

.PHONY: help setup setup-dev demo demo-full test test-slow test-compile test-exhaustive lint format clean

help:
	@echo "make setup      make .venv with raydet in it"
	@echo "make setup-dev  also what tests and lint need"
	@echo "make demo       a small two-phase GAFF study on the embedded synthetic set, on a local Ray: minutes"
	@echo "make demo-full  the GAFF study with all of its cells, on the same set: a quarter of an hour"
	@echo "make test       lint, types and tests"
	@echo "make test-slow  the tests that take longer than a minute; PART=3/6: the third of six parts of them"
	@echo "make test-compile  the tests of torch.compile; needs g++"
	@echo "make test-exhaustive  every case of what other tests try in parts"

setup: $(STAMP)

setup-dev: $(DEV_STAMP)

define make_venv
$(PYTHON) -m venv $(VENV)
$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
endef

$(STAMP): pyproject.toml
	$(make_venv)
	$(BIN)/uv pip install --quiet --python $(BIN)/python -e .
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -c "import $(IMPORTED)"
	@touch $(STAMP)

$(DEV_STAMP): pyproject.toml
	$(make_venv)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode -e ".[dev]"
	@touch $(STAMP) $(DEV_STAMP)

demo: setup
	$(BIN)/python -m raydet.tune --space gaff_demo --recipe tiny --seeds 3 --concurrency 2 --storage runs/demo

demo-full: setup
	$(BIN)/python -m raydet.tune --space gaff_phase2 --recipe demo --concurrency 2 --storage runs/demo-full

# Both halves run, whatever becomes of the first.
test: setup-dev lint
	@$(BIN)/python -m pytest -m "$(QUICK) and not ray" --numprocesses auto --maxprocesses 4 --dist loadfile; first=$$?; \
	$(BIN)/python -m pytest -m "$(QUICK) and ray"; second=$$?; \
	echo "exit codes: without Ray $$first, on Ray $$second"; [ $$first -eq 0 ] && [ $$second -eq 0 ]

# PART=3/6: the third of six parts that take about as long as one another, see tests/README.md. MINUTES=30: what has not
# begun by then is skipped.
test-slow: setup-dev
	$(BIN)/python -m pytest -m "slow and not exhaustive" -rs $(if $(PART),--part $(PART)) $(if $(MINUTES),--minutes $(MINUTES))

test-compile: setup-dev
	$(BIN)/python -m pytest -m compile

test-exhaustive: setup-dev
	$(BIN)/python -m pytest -m exhaustive

lint: setup-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build dist *.egg-info
