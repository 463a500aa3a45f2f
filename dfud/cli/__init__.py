"""The command `dfuctl`: the registry's API for people and scripts."""
