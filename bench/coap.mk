.PHONY: bench-coap
bench-coap: setup
	$(BIN)/python -m bench.coap
