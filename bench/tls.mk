.PHONY: bench-tls bench-overload
bench-tls: setup
	$(BIN)/python -m bench.tls
bench-overload: setup
	$(BIN)/python -m bench.overload
