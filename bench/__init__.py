"""Benchmarks: each prints a table of its own run. Ratios within one run are what counts."""
