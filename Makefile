# make run    build and install into .venv, then a short guided run
# make test   everything CI runs
# make bench  measures; writes benchmarks/results/library.json and the figures in docs/benchmarks.md
# make lint, make clean
PYTHON ?= python3
PYTEST_ARGS ?=
BENCH_ARGS ?=
V := .venv/bin/python
SOURCES := $(shell find csrc src meson.build meson_options.txt pyproject.toml -type f -not -name '*.pyc' -not -name '*.so' -not -name holdfast-keeper)

.PHONY: run test install lint bench clean
run: install
	@sh examples/tour.sh .venv/bin/holdfast

install: .venv/installed

.venv/ready: pyproject.toml tools/ensure
	@sh tools/ensure "$(PYTHON)"
	@echo "holdfast: making a virtual environment in .venv"
	@"$(PYTHON)" -m venv .venv
	@$(V) -m pip install -q --disable-pip-version-check 'meson-python>=0.17' 'meson>=1.3' ninja
	@touch .venv/ready

.venv/installed: .venv/ready $(SOURCES)
	@echo "holdfast: building"
	@PATH="$(CURDIR)/.venv/bin:$$PATH" $(V) -m pip install -q --disable-pip-version-check --no-build-isolation --force-reinstall --no-deps .
	@$(V) -m pip install -q --disable-pip-version-check 'click>=8'
	@sh tools/launcher "$(CURDIR)/.venv"
	@touch .venv/installed

.venv/test-ready: .venv/installed
	@$(V) -m pip install -q --disable-pip-version-check 'hypothesis>=6' 'mypy>=1.11' 'pytest>=8' 'pytest-timeout>=2.3' 'pytest-xdist>=3.6' 'ruff>=0.6' 'build>=1.2'
	@touch .venv/test-ready

lint: .venv/test-ready
	@$(V) -m ruff check .
	@$(V) -m mypy

export HOLDFAST_NO_SKIPS

test: .venv/test-ready lint
	@$(V) -m pytest $(PYTEST_ARGS)

bench: .venv/test-ready
	@$(V) benchmarks/library.py --json benchmarks/results/library.json $(BENCH_ARGS)
	@$(V) benchmarks/report.py

clean:
	rm -rf .venv build dist
