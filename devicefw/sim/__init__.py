"""Simulated ESP32-C3 boards: flash with NOR rules, the boot stage, and the image's own program on real MicroPython."""
