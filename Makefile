# `make`: set up .venv and run the main job.   `make check`: lint, types and quick tests.   `make test`: all tests, too.
# `make CONFIG=config/other.yaml CORES=8` runs another config, on 8 cores.   `make serve TARGET=fast`: chat with a child.

PYTHON ?= python3
CONFIG ?= config/config.yaml
CORES ?= all
READY := .venv/ready-$(shell cat envs/requirements.lock pyproject.toml | cksum | cut -d' ' -f1)

export PATH := $(CURDIR)/.venv/bin:$(PATH)
# Passed through the environment, because make would expand a `$` in the path, and the shell other characters.
override CONFIG := $(value CONFIG)
export CONFIG

run: $(READY)
	snakemake --logger tangram --cores $(CORES) --configfile "$$CONFIG"

# Compare the texts of the config's `text_trials` before a run: `make try-texts CONFIG=config/my.yaml`.
try-texts: $(READY)
	snakemake --logger tangram --cores $(CORES) --configfile "$$CONFIG" try_texts

test: $(READY)
	ruff check .
	ruff format --check .
	mypy
	snakefmt --check Snakefile rules workflow/Snakefile
	snakemake --lint
	OMP_NUM_THREADS=1 pytest --numprocesses logical --dist loadfile --no-loadscope-reorder

# Lint, types and the quick tests.
check: $(READY)
	ruff check .
	ruff format --check .
	mypy
	snakefmt --check Snakefile rules workflow/Snakefile
	OMP_NUM_THREADS=1 pytest --numprocesses logical --dist loadfile -m "not slow" tests/unit

# Update the lock to the newest versions that pyproject.toml allows, in a separate environment.
lock:
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install $(shell grep '^torch==' envs/requirements.lock)
	.venv-lock/bin/pip install '.[dev,studies,engines]' 'setuptools>=77'
	{ sed '/^#/!d' envs/requirements.lock; .venv-lock/bin/pip freeze --all --exclude tangram --exclude pip; } \
		| sed 's/+cpu$$//' > .venv-lock/lock
	mv .venv-lock/lock envs/requirements.lock
	rm -r .venv-lock

# Chat with an exported child: `make serve TARGET=fast`.
serve: $(READY)
	tangram chat "$(TARGET)" --config "$$CONFIG"

setup: $(READY)

$(READY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: Python 3.11 or newer is needed (sudo apt install python3), or name one: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || \
		{ echo "error: this Python cannot create environments: sudo apt install python3-venv"; exit 1; }
	$(PYTHON) -m venv .venv
	python -m pip install $(shell grep '^torch==' envs/requirements.lock)
	python -m pip install --requirement envs/requirements.lock
	python -m pip install --no-deps --no-build-isolation --editable .
	@rm -f .venv/ready-*
	@touch $@

.PHONY: run try-texts test check lock serve setup
