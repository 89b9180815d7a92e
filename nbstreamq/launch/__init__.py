"""Where processes live: the embedded server and the local supervisor."""
