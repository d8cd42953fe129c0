# make book, make test, make check; make environment for .venv alone; make release for what a release consists of.
# PYTHON=python3.12 chooses the interpreter, PROFILE=gpu the profile, JOBS=4 how many chapters run at a time.

PYTHON ?= python3
PROFILE ?= cpu
VENV := .venv
READY := $(VENV)/.ready

.PHONY: environment book test check format wheel release lock clean

environment: $(READY)

book: $(READY)
	@$(VENV)/bin/python book/programs/build.py --profile $(PROFILE) $(if $(JOBS),--jobs $(JOBS))

# What a commit must pass first. As many processes as there are cores, one thread each; pytest's own options go into PYTEST_ADDOPTS.
test: $(READY) check
	@OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n logical --maxprocesses 16 --dist worksteal --cov=kdlab.objectives --cov-report=term:skip-covered --cov-fail-under=100

# What a commit must pass, with the settings of pyproject.toml: format, lint and types.
check: $(READY)
	@$(VENV)/bin/ruff format --check --quiet . || { echo "make format mends it."; exit 1; }
	@$(VENV)/bin/ruff check --quiet .
	@$(VENV)/bin/pyrefly check --summary=none --python-interpreter-path $(VENV)/bin/python

# The environment is made anew when the lock changes; kdlab itself is installed in place.
$(READY): requirements.lock pyproject.toml
	@echo "environment … (a minute or two, once)"
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v < (3, 14) else f"kdlab needs Python 3.11 to 3.13, and {sys.executable} is {v[0]}.{v[1]}: make PYTHON=python3.12 …")'
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

format: $(READY)
	@$(VENV)/bin/ruff format --quiet .

wheel: $(READY)
	@$(VENV)/bin/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	@ls dist

# In dist: wheel, source distribution, the built book as an archive and as a PDF (which takes Chromium or Chrome), checksums.
release: book
	@$(VENV)/bin/python book/programs/release.py

# Resolve pyproject.toml again, for every supported Python. torch brings its own CUDA packages where it wants them;
# triton stays pinned, since liger-kernel asks for it beside a CPU torch too.
lock:
	@echo "# Locked by 'make lock' from pyproject.toml, for Python 3.11 to 3.13." > requirements.lock.new
	@printf 'torch==2.13.0\nnumpy<2.5\n' | uv pip compile pyproject.toml -c - --all-extras --universal --python-version 3.11 \
	  --no-header --no-annotate --quiet | grep -vE '^(nvidia|cuda|kdlab)' >> requirements.lock.new
	@mv requirements.lock.new requirements.lock

clean:
	rm -rf _build dist build *.egg-info
