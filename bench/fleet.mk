# SIZE=1000000, or several: what a device costs in fleets of different devices; then a plot of build/bench-fleet/*.json.
# POLLED=50000: only so many of the devices poll, where the machine has no time for all.
SIZE ?= 1000 10000 100000
POLLED ?= 0
.PHONY: bench-fleet
bench-fleet: setup
	$(BIN)/python -m bench.fleet $(SIZE) --polled $(POLLED)
	$(BIN)/python -m bench.fleet_plot build/bench-fleet docs/fleet.svg
