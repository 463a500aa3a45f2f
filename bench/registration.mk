# Devices registered in batches beside one by one, on the real daemon. DEVICES=number for the batches.
.PHONY: bench-registration
bench-registration: setup
	$(BIN)/python -m bench.registration $(if $(DEVICES),--devices $(DEVICES))
