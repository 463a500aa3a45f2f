.PHONY: bench-cluster
bench-cluster: setup
	$(BIN)/python -m bench.cluster --devices $(or $(DEVICES),10000) --seconds $(or $(SECONDS),5)

.PHONY: bench-cluster-growth
# 10^6 devices take half an hour, and 4 GB of disk.
bench-cluster-growth: setup
	$(BIN)/python -m bench.cluster_growth --sizes $(or $(SIZES),10000 100000 1000000) --poll $(or $(POLL),1000000)
