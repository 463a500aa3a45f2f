"""What stands in the flash of a board: made for a factory, and read back. Pure: no network, no serial line, no registry."""
