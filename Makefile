PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
LOWEST := .venv-lowest
# retinaface-pytorch imports these
RETINAFACE_IMPORTS := torchvision albumentations
# One torch thread in each of two workers is faster than two threads in one, and leaves results the same.
ONE_THREAD := OMP_NUM_THREADS=1
PYTEST := -m pytest -n 2 --dist loadfile tests
DEMO ?= demo

.PHONY: help install test lowest check format bench demo clean

help:
	@echo "make demo     restore a few photos that come with the dependencies, into $(DEMO)/"
	@echo "make test     run the tests"
	@echo "make lowest   run the tests with the oldest releases of the dependencies that pyproject.toml allows"
	@echo "make check    lint, format check, types"
	@echo "make bench    time the restoration path against a plain implementation"
	@echo "make install  make $(VENV) with everything for development"

install: $(READY)

# retinaface-pytorch pins a torch of 2021, and runs on a current one: it goes in without its dependencies, beside what
# it really imports. It comes last, so that pip never tries to satisfy its pins.
$(READY): pyproject.toml .ci/constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint .ci/constraints.txt --editable '.[dev]' $(RETINAFACE_IMPORTS)
	$(BIN)/python -m pip install --quiet --constraint .ci/constraints.txt --no-deps retinaface-pytorch
	touch $@

test: $(READY)
	$(ONE_THREAD) $(BIN)/python $(PYTEST)

lowest:
	test -d $(LOWEST) || $(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet uv
	$(LOWEST)/bin/uv pip compile --quiet --python $(LOWEST)/bin/python --resolution lowest-direct \
		--extra heif --extra raw --extra train pyproject.toml --output-file $(LOWEST)/lowest.txt
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --requirement $(LOWEST)/lowest.txt
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --constraint $(LOWEST)/lowest.txt --editable '.[dev]' \
		$(RETINAFACE_IMPORTS)
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --no-deps retinaface-pytorch
	$(ONE_THREAD) $(LOWEST)/bin/python $(PYTEST)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)
	$(BIN)/python tests/bench/bench_refldm.py --json bench.json

demo: $(READY)
	$(BIN)/python -m facefix.cli.demo $(DEMO)

clean:
	rm -rf $(VENV) $(LOWEST) $(DEMO) .pytest_cache .mypy_cache .ruff_cache
