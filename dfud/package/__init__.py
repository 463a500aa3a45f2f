"""Packages: one firmware prepared for one starting image (docs/protocol.md, docs/delta-format.md). Pure but for worker.py."""
