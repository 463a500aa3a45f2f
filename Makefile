# Everything runs from a checkout: the environment lives in .venv, what is built in build/.
# The distribution's Python, where it is a 3.11: it is compiled with profiles, and dfud costs a fifth less on it than on a plain build.
PYTHON ?= $(firstword $(wildcard /usr/bin/python3.11) python3.11)
BIN := .venv/bin
TRANSPORT ?= http
# Tests side by side, four more than there are cores since many of them wait; each starts its own daemons on free ports.
WORKERS ?= $(shell expr $$(nproc 2>/dev/null || echo 2) + 4)
BOARDS ?= 20

.PHONY: help mip bootloader demo demo-rollout test exhaustive setup lock lint audit clean distclean
help:
	@echo "make demo [TRANSPORT=coap|serial] daemon, simulated board, a good update and a bad one that rolls back"
	@echo "make demo BOARD=sim              the same from a bare board: one file is made, flashed, enrols, is updated, rolls back"
	@echo "make demo-rollout [BOARDS=20]    a good version in three waves over a fleet of boards, a bad one that stops itself"
	@echo "make demo-cluster [LB=haproxy]   three dfud on PostgreSQL and S3 behind balancers, 50 boards, one killed, the database restarted"
	@echo "make test                        everything that CI runs"
	@echo "make setup                       only the set-up that both of them do by themselves"
	@echo "make bootloader                  the second stage, build/bootloader/bootloader.bin (bootloader/: size, prove, fuzz)"
	@echo "make mip                         the agent as packages for mip and mpremote, build/mip"
	@echo "make exhaustive                  all of what make test samples: power cuts at every flash operation, chaos, races, random walks"
	@echo "make interop                     build and run clients of Drogue's (cargo, two minutes the first time)"
	@echo "make test-hawkbit                what dfud relies on in hawkBit, then dfud on it: HAWKBIT_URL or HAWKBIT_JAR, else a model"
	@echo "make audit                       look the locked dependencies up among the known vulnerabilities"
	@echo "make lint | lock                 ruff, mypy | remake requirements.lock (what runs) and requirements-test.lock (all)"
	@echo "make clean | distclean           remove what is built | and the environment; var, dfud's state, stays"
	@echo "make bench-http | bench-coap     what a poll, a chunk and a report cost"
	@echo "make bench-rollouts | bench-registration   what rollouts cost decisions, and what registering many devices costs"
	@echo "make bench-tls | bench-overload  what TLS costs beside nginx, and what becomes of far too many reports"
	@echo "make bench-fleet SIZE=1000000    what a device costs in fleets of that many different ones"
	@echo "make soak MINUTES=30              hostile strangers beside honest devices: memory flat, nobody waits longer than 1 s"
	@echo "make bench-year                  what a simulated year of 10,000 devices weighs, month by month"
	@echo "make bench-delta                 what updates weigh beside other tools (PAIRS=directory, QUICK=1)"

setup: build/.setup

build/.setup: requirements-test.lock pyproject.toml .ci/setup
	PYTHON="$(PYTHON)" .ci/setup
	@mkdir -p build && touch $@

# Without the cross compiler there is none, and the tests that boot through it are skipped.
bootloader: setup
	@if command -v riscv64-unknown-elf-gcc >/dev/null; then $(MAKE) -s -C bootloader PYTHON=$(CURDIR)/$(BIN)/python; fi

mip: setup
	$(BIN)/python -m devicefw.sim.mip build/mip

demo: setup bootloader
	$(if $(filter-out sim,$(BOARD)),$(error BOARD=$(BOARD): expected sim or nothing))
	$(BIN)/python -m $(if $(filter sim,$(BOARD)),devicefw.sim.demo_board,devicefw.sim.demo --transport $(TRANSPORT))

demo-rollout: setup bootloader
	nice $(BIN)/python -m devicefw.sim.demo_rollout --boards $(BOARDS)

# What is compiled is kept, whatever the caller's environment says: each worker and each program that a test starts reads it.
test: export PYTHONDONTWRITEBYTECODE :=
test: setup bootloader
	$(BIN)/ruff check dfud plugins devicefw bootloader tests bench
	$(BIN)/python -m tests.prepare
	@$(BIN)/python -m tests.prepare late & \
	{ $(BIN)/mypy >build/mypy.log 2>&1 || { cat build/mypy.log; exit 1; }; } & typed=$$!; \
	echo '$(BIN)/mypy, and beside it'; echo '$(BIN)/pytest -n $(WORKERS)$(if $(TESTS), -m "$(TESTS)")'; \
	$(BIN)/pytest -n $(WORKERS) $(if $(TESTS),-m "$(TESTS)"); passed=$$?; \
	wait $$typed || { cat build/mypy.log; exit 1; }; exit $$passed

exhaustive: setup bootloader
	$(BIN)/pytest -m slow

audit: setup
	$(BIN)/python .ci/audit

lint: setup
	$(BIN)/ruff check dfud plugins devicefw bootloader tests bench
	$(BIN)/ruff format --check dfud plugins
	$(BIN)/mypy

lock:
	$(BIN)/uv pip compile -q --python-version 3.11 --generate-hashes --no-header --no-annotate \
		--all-extras --group test --group bench pyproject.toml -o requirements-test.lock
	$(BIN)/uv pip compile -q --python-version 3.11 --generate-hashes --no-header --no-annotate \
		--extra users --extra postgres --extra s3 -c requirements-test.lock pyproject.toml -o requirements.lock

# What is built; never `var`, where `dfud run` from a checkout keeps its database and key.
clean:
	rm -rf build

# Everything that is not in the repository but the state in `var`.
distclean: clean
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis

-include bench/*.mk tests/*/*.mk tests/plugins/*/*.mk
