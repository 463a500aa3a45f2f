DRG := build/tools/bin/drg

.PHONY: interop
# The CLI is built once, about four minutes, and kept; without cargo its line says so.
interop: setup
	@if [ ! -x $(DRG) ]; then \
		if command -v cargo >/dev/null; then \
			cargo install drg --version 0.11.0 --locked --root build/tools || echo "drg: could not be built"; \
		else echo "drg: no cargo here"; fi; fi
	$(BIN)/pytest tests/interop -v --no-header -m 'interop or not interop'
