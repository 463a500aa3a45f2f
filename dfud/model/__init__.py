"""Values and rules without bytes, sockets or clocks."""
