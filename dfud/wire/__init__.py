"""The bytes of dfu/1 (docs/protocol.md): pure functions of bytes and values, no sockets, no clock, no await."""
