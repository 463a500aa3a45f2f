.PHONY: bench-tls
bench-tls: setup
	$(BIN)/python -m bench.tls
