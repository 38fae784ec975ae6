"""A TCP proxy whose connections can be slowed, cut, or made deaf in one direction."""

from __future__ import annotations

import socket
import struct
import threading
import time
from contextlib import suppress
from types import TracebackType

CHUNK = 65_536
TICK_S = 0.2
RESET = struct.pack("ii", 1, 0)
"""Linger 0: a close sends RST."""


class Proxy:
    """Listens on ``port`` and passes on to ``target``, a port of this host, until closed."""

    def __init__(self) -> None:
        self.target = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(TICK_S)
        self.port: int = self._listener.getsockname()[1]
        self._closed = threading.Event()
        self._deaf: frozenset[str] = frozenset()
        self._latency_s = 0.0
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept, name="proxy")]
        self._threads[0].start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._closed.set()
        self._listener.close()
        self.reset()
        for thread in self._threads:
            thread.join()

    def deafen(self, *directions: str) -> None:
        """Swallow all bytes ``to_broker`` or ``to_client``; connections stay, and new ones open."""
        self._deaf = frozenset(directions)

    def slow(self, latency_s: float) -> None:
        """Hold all bytes back for so long, in both directions."""
        self._latency_s = latency_s

    def heal(self) -> None:
        """Pass on again. A connection that lost bytes is cut: TCP would not go on with a hole."""
        lost, self._deaf = self._deaf, frozenset()
        self._latency_s = 0.0
        if lost:
            self.reset()

    def reset(self) -> None:
        """Cut every connection with RST."""
        with self._lock:
            cut, self._sockets = self._sockets, set()
        for one in cut:
            with suppress(OSError):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                one.shutdown(socket.SHUT_RD)
            one.close()

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                continue
            try:
                broker = socket.create_connection(("127.0.0.1", self.target), 5.0)
            except OSError:
                client.close()
                continue
            with self._lock:
                self._sockets |= {client, broker}
            for way in (("to_broker", client, broker), ("to_client", broker, client)):
                thread = threading.Thread(target=self._pass, args=way, name="proxy", daemon=True)
                self._threads.append(thread)
                thread.start()

    def _pass(self, direction: str, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            source.settimeout(None)
            while data := source.recv(CHUNK):
                if self._latency_s:
                    time.sleep(self._latency_s)
                if direction not in self._deaf:
                    sink.sendall(data)
        for one in (source, sink):
            with self._lock:
                self._sockets.discard(one)
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
