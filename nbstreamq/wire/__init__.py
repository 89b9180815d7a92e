"""The wire: keys, messages, scripts, and the only access to Redis (`store.Store`)."""
