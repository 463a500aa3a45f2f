"""Packages: one firmware prepared for one starting image (docs/protocol.md, docs/packages.md). Pure but for worker.py."""
