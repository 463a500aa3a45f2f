# PAIRS=directory: pairs of your own, NAME/old.bin and NAME/new.bin in it; QUICK=1: only the smallest made ones.
.PHONY: bench-delta
bench-delta: setup bootloader
	$(BIN)/python -m bench.delta $(if $(PAIRS),--pairs $(PAIRS)) $(if $(QUICK),--quick)
