"""The wire: keys, messages, scripts, and the one door to Redis (`store.Store`)."""
