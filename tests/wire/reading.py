"""How the tests read the events of a session: at once, as a client does in steps."""


def read_events(store, session="s", after=b"0", block=0):
    """Return the id of the last entry after `after`, and its events, once there are any."""
    last = {session: after}
    store.await_events(session, last, block)
    assert store.wire.wait(block + 5), "the server answers"
    events = store.events(last)
    return last[session], events
