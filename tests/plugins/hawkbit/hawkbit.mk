.PHONY: test-hawkbit
# Against HAWKBIT_URL (an empty tenant of yours; HAWKBIT_USER, HAWKBIT_PASSWORD, HAWKBIT_GATEWAY), or a process of the jar
# HAWKBIT_JAR on the loopback, or else the model: first what is relied on, then the plugin end to end. Its last lines say which.
test-hawkbit: setup
	$(BIN)/pytest tests/plugins/hawkbit/contract
	$(BIN)/pytest tests/plugins/hawkbit --ignore=tests/plugins/hawkbit/contract
