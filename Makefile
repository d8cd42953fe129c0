# Two commands: make test, make book.  PYTHON=python3.12 chooses the interpreter, PROFILE=gpu the profile.

PYTHON ?= python3
PROFILE ?= cpu
VENV := .venv
READY := $(VENV)/.ready

.PHONY: book test wheel lock clean

book: $(READY)
	@$(VENV)/bin/python book/build.py --profile $(PROFILE)

test: $(READY)
	@$(VENV)/bin/python -m pytest --cov=kdlab.objectives --cov-report=term:skip-covered --cov-fail-under=100

# The environment is made anew when the lock changes; kdlab itself is installed in place.
$(READY): requirements.lock pyproject.toml
	@echo "environment … (a minute or two, once)"
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v < (3, 14) else f"kdlab needs Python 3.11 to 3.13, and {sys.executable} is {v[0]}.{v[1]}: make PYTHON=python3.12 …")'
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

wheel: $(READY)
	@$(VENV)/bin/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	@ls dist

# Resolve pyproject.toml again, for every supported Python. torch brings its own CUDA packages where it wants them;
# triton stays pinned, since liger-kernel asks for it beside a CPU torch too.
lock:
	@echo "# Locked by 'make lock' from pyproject.toml, for Python 3.11 to 3.13." > requirements.lock.new
	@printf 'torch==2.13.0\nnumpy<2.5\n' | uv pip compile pyproject.toml -c - --all-extras --universal --python-version 3.11 \
	  --no-header --no-annotate --quiet | grep -vE '^(nvidia|cuda|kdlab)' >> requirements.lock.new
	@mv requirements.lock.new requirements.lock

clean:
	rm -rf _build dist build *.egg-info
