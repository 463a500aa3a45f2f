# MINUTES=30: hostile strangers beside honest devices; fails unless memory is flat and no honest device waits longer than 1 s.
MINUTES ?= 30
.PHONY: soak
soak: setup
	$(BIN)/python -m bench.soak --minutes $(MINUTES)
