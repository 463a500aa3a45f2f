"""What devices talk to: bytes become messages here, and strangers become known devices. It knows no transport's bytes."""
