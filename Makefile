# Each goal does its own set-up: a virtual environment in the tree, made anew when the
# dependencies change. Nothing is installed outside this folder.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: demo test check bench loops observers moments answers simulate mutants chaos faults humaneval wfinstances
.PHONY: test-vm clean

# Strict editable: what can be imported is exactly what pyproject.toml lists, so no test passes by
# importing something that the wheel would not hold. Its links are made anew when a file is added,
# which shows as a newer folder.
FOLDERS := $(shell find protocol sandbox supervisor tests/hostile/suite -type d ! -name __pycache__)

$(VENV)/.ready: pyproject.toml $(FOLDERS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "casemate needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1)."; \
	  echo "Name another one: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@echo "setting up $(VENV) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@PYTHONDONTWRITEBYTECODE=1 $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --editable '.[dev,humaneval]' --config-settings editable_mode=strict
	@touch $@

demo: $(VENV)/.ready
	@$(BIN)/casemate run examples/review/pipeline.yaml $(ARGS)

# What a change must pass: style, types, tests (on all cores; `ARGS="-n 0"` is one after another).
test: check
	@$(BIN)/python -m pytest -n logical --dist worksteal $(ARGS)

check: $(VENV)/.ready
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy --strict -p casemate
	@$(BIN)/mypy --strict tests

# A fault at every single write of a run and of its fork: minutes. The suite does it at some.
faults: $(VENV)/.ready
	@for fault in kill torn lost EIO ENOSPC; do folder=$$(mktemp -d); printf '%s: ' $$fault; \
	  PYTHONPATH=tests $(BIN)/python -B tests/supervisor/every_write.py $$fault $$folder || exit 1; \
	  rm -rf $$folder; done

humaneval: $(VENV)/.ready
	@$(BIN)/python examples/humaneval/run.py $(ARGS)

wfinstances: $(VENV)/.ready
	@$(BIN)/python examples/wfinstances/run.py $(ARGS)

bench: $(VENV)/.ready
	@$(BIN)/python tests/bench/table.py $(ARGS)

loops: $(VENV)/.ready
	@$(BIN)/python tests/bench/loops.py $(ARGS)

observers: $(VENV)/.ready
	@$(BIN)/python tests/bench/observers.py $(ARGS)

moments: $(VENV)/.ready
	@$(BIN)/python tests/bench/moments.py $(ARGS)

answers: $(VENV)/.ready
	@PYTHONPATH=tests $(BIN)/python -m answers $(ARGS)

# The core under simulation, of which `make test` plays a few seeds: `make simulate SEEDS=1000000`.
SEEDS ?= 20000
simulate: $(VENV)/.ready
	@PYTHONPATH=tests $(BIN)/python -B -m simulation --seeds $(SEEDS) $(ARGS)

# What of the core could be wrong unnoticed: faults put into a copy of it, and which tests see them.
mutants: $(VENV)/.ready
	@PYTHONPATH=tests $(BIN)/python -B -m simulation.mutants $(ARGS)

# The long tests, of which `make test` runs a short one each: `make chaos ARGS="kills --runs 5"`.
chaos: $(VENV)/.ready
	@PYTHONPATH=tests $(BIN)/python -m chaos $(ARGS)

# The suites on pure cgroup v2 under systemd, in a guest made of Debian packages (qemu): minutes.
test-vm: $(VENV)/.ready
	@PYTHONPATH=tests $(BIN)/python -B -m vm $(ARGS)

clean:
	rm -rf $(VENV) .venv-* build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
