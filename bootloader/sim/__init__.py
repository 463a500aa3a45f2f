"""The shipped ELF under Unicorn: ROM calls, registers and a NOR flash stand around it."""
