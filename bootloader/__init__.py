"""The second stage for ESP32-C3: what runs it on a host, and what proves it."""
