"""The process: configuration, plugins, start order, signals, logs. Nothing may import it but the command line."""
