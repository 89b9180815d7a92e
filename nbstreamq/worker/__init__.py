"""Who does: the supervisor and its workers."""
