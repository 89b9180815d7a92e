"""Where processes live: the embedded server and the local supervisor."""

#: Name of the embedded server's socket when nobody shall come in any more. Not longer than the one
#: it has otherwise, for which there is room in an address.
CLOSING = "server.shut"
