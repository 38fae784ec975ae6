"""The connections of the HTTP side: a bounded number at once, as each is a thread of the worker's.

Rule: a client that is slow to ask keeps its place while there are others, and no longer than
``HEAD_LIMIT_S``; so a health check finds one even where many clients say nothing.
"""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any

import structlog

MOST_CONNECTIONS = 64
"""Event streams, of which there are fewer, are among them."""
HEAD_LIMIT_S = 10.0
"""For the whole head of a request, however it trickles in."""

log = structlog.get_logger(__name__)


class BoundedServer(ThreadingHTTPServer):
    """A thread for each connection, ``most`` at once. Its handler calls ``asked``."""

    daemon_threads = False  # so that server_close waits for them
    request_queue_size = 64  # beyond it a client waits a second to try again

    def __init__(
        self,
        address: tuple[str, int],
        handler: type[BaseHTTPRequestHandler],
        most: int = MOST_CONNECTIONS,
        head_limit_s: float = HEAD_LIMIT_S,
    ) -> None:
        self._most = most
        self._head_limit_s = head_limit_s
        self._lock = threading.Lock()
        self._waiting: dict[socket.socket, float] = {}
        """Whose head is not here yet, and until when it may take; the oldest comes first."""
        self._asked: set[socket.socket] = set()
        super().__init__(address, handler)

    def server_bind(self) -> None:
        """Bind, without the name look-up of HTTPServer, which may take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give it a thread. Beyond the bound, at the cost of who asks the slowest, if any does."""
        with self._lock:
            full = len(self._waiting) + len(self._asked) >= self._most
            if full and self._waiting:
                self._drop_oldest()
                full = False
            if not full:
                self._waiting[request] = time.monotonic() + self._head_limit_s
        if full:
            self.shutdown_request(request)
        else:
            super().process_request(request, client_address)

    def asked(self, connection: socket.socket) -> None:
        """The head of its request is here."""
        with self._lock:
            if self._waiting.pop(connection, None) is not None:
                self._asked.add(connection)

    def shutdown_request(self, request: Any) -> None:
        """Every connection ends here, whatever became of it, and its place is free."""
        with self._lock:
            self._waiting.pop(request, None)
            self._asked.discard(request)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Between any two connections, and many times a second, drop who is late."""
        super().service_actions()
        now_s = time.monotonic()
        with self._lock:
            while self._waiting and next(iter(self._waiting.values())) <= now_s:
                self._drop_oldest()

    def hang_up(self) -> None:
        """End connections on which a browser waits for nothing: their threads would too."""
        with self._lock:
            for connection in (*self._waiting, *self._asked):
                _end(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is not worth a line."""
        log.debug("client_left", client=str(client_address))

    def _drop_oldest(self) -> None:
        connection = next(iter(self._waiting))
        del self._waiting[connection]
        _end(connection)


def _end(connection: socket.socket) -> None:
    """Its thread wakes up and closes it."""
    with suppress(OSError):  # it may be gone already
        connection.shutdown(socket.SHUT_RDWR)
