.PHONY: test-postgres
# On another PostgreSQL than the newest of this machine: POSTGRES=/usr/lib/postgresql/13/bin
test-postgres: setup
	$(if $(POSTGRES),DFUD_TEST_POSTGRES_BIN=$(POSTGRES)) $(BIN)/pytest tests/plugins/postgres
