# Few words: make demo, make test, make lint, make format, make bench, make soak, make lock, make schemas.
# Everything runs in .venv, made from the hashed lock in requirements/; only Python 3.11+ is needed.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
ROOT ?= data/demo
ARCHIVE ?= data/simulated-archive

.PHONY: demo test lint format bench soak lock schemas clean

demo: $(READY)  ## the main job, from a simulated archive to an evaluated model
	PATH="$(CURDIR)/$(BIN):$$PATH" ARCHIVE="$(ARCHIVE)" ROOT="$(ROOT)" sh docs/demo.sh

test: $(READY) lint  ## everything that must hold
	$(BIN)/python -m pytest -n 2 --dist loadfile -q

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)  ## the published figures (about half an hour on 2 cores)
	$(BIN)/python -m benchmarks

soak: $(READY)  ## 100 seeds of a network that fails (about a quarter of an hour)
	$(BIN)/python -m benchmarks.soak --seeds 100

lock: $(READY)  ## refresh the hashed lock from pyproject.toml
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 \
	  --generate-hashes --no-header --no-annotate --no-emit-index-url -q -o requirements/all.txt
	$(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 -c requirements/all.txt \
	  --generate-hashes --no-header --no-annotate --no-emit-index-url -q -o requirements/curation.txt

schemas: $(READY)  ## refresh schemas/ from the record types
	$(BIN)/terrashard schemas schemas

clean:
	rm -rf .venv data

$(READY): requirements/all.txt requirements/bootstrap.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name it: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements/bootstrap.txt
	$(BIN)/uv pip install -q -p .venv --require-hashes -r requirements/all.txt
	$(BIN)/uv pip install -q -p .venv --no-deps --no-build-isolation -e .
	touch $@
