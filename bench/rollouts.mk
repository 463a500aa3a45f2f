# SIZES="1000 10000 100000": what a rollout costs to make, and what a decision costs with 20 of them and 50 rules.
SIZES ?= 1000 10000 100000
.PHONY: bench-rollouts
bench-rollouts: setup
	$(BIN)/python -m bench.rollouts $(SIZES)
