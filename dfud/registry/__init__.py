"""What users talk to: apps, devices, firmware, desired and actual state."""
