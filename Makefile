# make run    build and install into .venv, then the supervisor on the services of examples/ (Ctrl-C stops it)
# make tour   a short guided run of `holdfast run`
# make test   everything CI runs
# make bench  measures; writes benchmarks/results/ and the figures in docs/benchmarks.md
# make chaos  kills what holds services up and looks from outside whether they noticed; PROFILE=supervisor|keepers|trouble|daemons
#             SEED= STEPS= SERVICES= KILLS= (0: no limit) JSON= (the report)
# make kernels  boots Debian's kernels under qemu and runs the process suite in each; writes docs/kernels.md
#             KERNELS=sid (a suite of Debian's, or several)
# make lint, make clean
PYTHON ?= python3
PYTEST_ARGS ?=
BENCH_ARGS ?=
SUPERVISOR_BENCH_ARGS ?=
SCALE_BENCH_ARGS ?=
LADDER_BENCH_ARGS ?=
PROFILE ?= supervisor
SEED ?= 1
STEPS ?= 100
SERVICES ?= 50
KILLS ?= 0
JSON ?= chaos-$(PROFILE)-$(SEED).json
KERNELS ?= bookworm bookworm-backports sid
V := .venv/bin/python
# -qq: errors only, with the compiler's output; a machine's own pip configuration is not our news.
PIP := $(V) -m pip install -qq --disable-pip-version-check
# Directories too: a file that was removed makes its directory newer.
SOURCES := meson.build meson_options.txt pyproject.toml tools/launcher \
	$(shell find csrc src -name __pycache__ -prune -o -not -name '*.pyc' -not -name '*.so' -not -name holdfast-keeper -print)

.PHONY: run tour test install lint bench chaos kernels clean
run: install
	@exec sh examples/run.sh .venv/bin/holdfast

tour: install
	@sh examples/tour.sh .venv/bin/holdfast

install: .venv/installed

.venv/ready: pyproject.toml tools/ensure
	@sh tools/ensure "$(PYTHON)"
	@echo "holdfast: making a virtual environment in .venv"
	@"$(PYTHON)" -m venv .venv
	@$(PIP) 'meson-python>=0.18' 'meson>=1.3' ninja
	@touch .venv/ready

.venv/installed: .venv/ready $(SOURCES)
	@echo "holdfast: building"
	@PATH="$(CURDIR)/.venv/bin:$$PATH" $(PIP) --no-build-isolation --force-reinstall --no-deps .
	@$(PIP) 'click>=8' 'msgspec>=0.19' 'starlette>=0.40' 'uvicorn>=0.30' 'cronsim>=2.6' 'anyio>=4.10'
	@sh tools/launcher "$(CURDIR)/.venv"
	@touch .venv/installed

.venv/test-ready: .venv/installed
	@echo "holdfast: installing what the tests need"
	@$(PIP) 'croniter>=6' 'hypothesis>=6' 'mypy>=1.11' 'pytest>=8' 'pytest-timeout>=2.3' 'pytest-xdist>=3.6' 'ruff>=0.6' 'build>=1.2' 'jsonschema>=4.18' 'schemathesis>=4.32,<5' 'trio>=0.26' 'uvloop>=0.19'
	@touch .venv/test-ready

lint: .venv/test-ready
	@$(V) -m ruff check .
	@$(V) -m mypy

export HOLDFAST_NO_SKIPS

test: .venv/test-ready lint
	@$(V) -m pytest $(PYTEST_ARGS)

bench: .venv/test-ready
	@$(V) benchmarks/library.py --json benchmarks/results/library.json $(BENCH_ARGS)
	@$(V) benchmarks/supervisor.py --json benchmarks/results/supervisor.json $(SUPERVISOR_BENCH_ARGS)
	@$(V) benchmarks/scale.py --json benchmarks/results/scale.json $(SCALE_BENCH_ARGS)
	@$(V) benchmarks/ladder.py --json benchmarks/results/ladder.json $(LADDER_BENCH_ARGS)
	@$(V) benchmarks/report.py

chaos: .venv/installed
	@cd tests && exec ../$(V) -m chaos --profile $(PROFILE) --seed $(SEED) --steps $(STEPS) --services $(SERVICES) \
		--kills $(KILLS) --json "$(abspath $(JSON))"

kernels: .venv/test-ready
	@sh tools/ensure "$(PYTHON)" kernels
	@cd tests && exec ../$(V) -m kernels $(KERNELS)

clean:
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .kernels
	find . -name __pycache__ -prune -exec rm -rf {} +
