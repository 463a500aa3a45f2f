.PHONY: bench-cluster
bench-cluster: setup
	$(BIN)/python -m bench.cluster --devices $(or $(DEVICES),10000) --seconds $(or $(SECONDS),5)
