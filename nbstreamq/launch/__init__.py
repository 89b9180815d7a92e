"""The processes that nbstreamq starts on this machine: the embedded server and local workers."""

#: Name of the embedded server's socket while the server accepts no new clients. It is not longer
#: than the usual name, because a socket's address has little room.
CLOSING = "server.shut"
