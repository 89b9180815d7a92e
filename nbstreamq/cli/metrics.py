"""`nbstreamq metrics`: what Prometheus collects."""

from __future__ import annotations

import argparse
from contextlib import closing
from typing import TYPE_CHECKING

from .parsing import Commands, add_command, add_queue, add_server, argument, host_and_port
from .target import open_queues, open_store, server

if TYPE_CHECKING:
    from http.server import ThreadingHTTPServer

#: The version of the text format.
_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def add_metrics(commands: Commands) -> None:
    """Add the command to the parser."""
    metrics = add_command(
        commands,
        "metrics",
        "print metrics for Prometheus, or serve them; the workers export nothing",
        "nbstreamq metrics redis://localhost:6379 --listen localhost:9464",
        _run,
    )
    add_server(metrics)
    add_queue(metrics, default=None)
    metrics.add_argument(
        "--listen",
        type=argument(host_and_port),
        metavar="HOST:PORT",
        help="serve them over HTTP until Ctrl-C; ask the server at each request",
    )


def _run(options: argparse.Namespace) -> None:
    if options.listen is None:
        print(_text(options), end="")
        return
    with make_http_server(options) as http:
        host, port = http.server_address[:2]
        print(
            f"nbstreamq: metrics on http://{host!s}:{port}/metrics. Ctrl-C ends this.", flush=True
        )
        try:
            http.serve_forever()
        except KeyboardInterrupt:
            return


def make_http_server(options: argparse.Namespace) -> ThreadingHTTPServer:
    """Return a server that answers each GET with the metrics of now."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = _text(options).encode()
            self.send_response(200)
            self.send_header("Content-Type", _TYPE)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Log no requests: there is one every few seconds."""

    return ThreadingHTTPServer(options.listen, Handler)


def _text(options: argparse.Namespace) -> str:
    from ..client.metrics import metrics_text

    with closing(open_store(*server(options), "default")) as store:
        facts = store.server_facts()
    with open_queues(options) as stores:
        return metrics_text(stores, facts)
