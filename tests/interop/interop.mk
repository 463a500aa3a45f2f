.PHONY: interop
# Clients are built once, about two minutes on two idle cores, and kept in build/tools; what was cut off goes on with the next run;
# what cannot be had says why (3).
interop: setup
	@built=0; $(BIN)/python tests/interop/build.py || built=$$?; \
	if [ $$built = 3 ]; then exec $(BIN)/pytest tests/interop --no-header; fi; \
	exec $(BIN)/pytest tests/interop --no-header -m "client or not slow"
