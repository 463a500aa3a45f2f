"""What decides: one owner of every deployment. It knows messages and the store, no bytes of a transport."""
