"""Inputs for the fuzzers."""
