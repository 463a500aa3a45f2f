.PHONY: demo-cluster
# LB=nginx or LB=haproxy: that one alone; else both, where both are there.
demo-cluster: setup bootloader
	nice $(BIN)/python -m tests.cluster.demo --boards $(if $(filter file,$(origin BOARDS)),50,$(BOARDS)) $(foreach one,$(LB),--balancer $(one))
