# Everything runs from a checkout: the environment lives in .venv, what is built in build/.
PYTHON ?= python3.11
BIN := .venv/bin
TRANSPORT ?= http

.PHONY: help demo test setup lock lint bench clean
help:
	@echo "make demo [TRANSPORT=http|coap]  daemon, simulated board, a good update and a bad one that rolls back"
	@echo "make test                        everything that CI runs"
	@echo "make setup                       only the set-up that both of them do by themselves"
	@echo "make lint | lock                 ruff, mypy | remake requirements.lock"
	@echo "make prove                       power-cut explorations of the bootloader, to closure"
	@echo "make bench-http bench-store bench-coap bench-delta"
	@echo "make test-hawkbit [HAWKBIT_JAR=... | HAWKBIT_URL=...]   make interop"

setup: build/.setup

build/.setup: requirements.lock pyproject.toml .ci/setup
	PYTHON="$(PYTHON)" .ci/setup
	@mkdir -p build && touch $@

demo: setup
	$(BIN)/python -m devicefw.sim.demo --transport $(TRANSPORT)

test: setup
	$(BIN)/ruff check dfud plugins devicefw bootloader tests bench
	$(BIN)/mypy
	$(BIN)/pytest

lint: setup
	$(BIN)/ruff check dfud plugins devicefw bootloader tests bench
	$(BIN)/ruff format --check dfud plugins
	$(BIN)/mypy

prove: setup
	$(MAKE) -C bootloader prove

lock:
	$(BIN)/uv pip compile -q --python-version 3.11 --generate-hashes --no-header --no-annotate \
		--all-extras --group test --group bench pyproject.toml -o requirements.lock

clean:
	rm -rf build var

-include bench/*.mk tests/*/*.mk
