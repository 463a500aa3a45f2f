"""What runs on devices (dfu/, MicroPython), and boards to run it on without hardware (sim/)."""
