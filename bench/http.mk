.PHONY: bench-http
bench-http: setup
	$(BIN)/python -m bench.http
