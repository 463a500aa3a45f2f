# SIZE=1000000, or several: what a device costs in fleets of different devices; then a plot of build/bench-fleet/*.json.
SIZE ?= 1000 10000 100000
.PHONY: bench-fleet
bench-fleet: setup
	$(BIN)/python -m bench.fleet $(SIZE)
	$(BIN)/python -m bench.fleet_plot build/bench-fleet docs/fleet.svg
