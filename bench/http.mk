.PHONY: bench-http
bench-http: setup
	$(BIN)/python -m bench.http
.PHONY: bench-many
bench-many: setup
	$(BIN)/python -m bench.many
