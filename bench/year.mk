# DEVICES=10000 MONTHS=12: the sizes of the local store over a simulated year, month by month.
.PHONY: bench-year
bench-year: setup
	$(BIN)/python -m bench.year --devices $(or $(DEVICES),10000) --months $(or $(MONTHS),12)
