"""How many connections are served at once, and how long a client may take to ask."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

from streammaml.backends.connections import BoundedServer
from tests.kafka_broker import wait_until

WAIT_S = 30.0
ASK = b"GET / HTTP/1.0\r\n\r\n"


class Handler(BaseHTTPRequestHandler):
    """Answers when it may."""

    server: Server

    def do_GET(self) -> None:
        self.server.asked(self.connection)
        self.server.asking.release()
        assert self.server.may_answer.wait(WAIT_S)
        self.wfile.write(b"answer")


class Server(BoundedServer):
    def __init__(self, most: int, head_limit_s: float) -> None:
        super().__init__(("127.0.0.1", 0), Handler, most, head_limit_s)
        self.asking = threading.Semaphore(0)
        self.may_answer = threading.Event()
        self.opened: list[socket.socket] = []

    def open(self) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.server_port), timeout=WAIT_S)
        self.opened.append(connection)
        return connection

    def ask(self) -> socket.socket:
        """One that is being answered."""
        connection = self.open()
        connection.sendall(ASK)
        assert self.asking.acquire(timeout=WAIT_S)
        return connection


@contextmanager
def serving(most: int, head_limit_s: float = 1e6) -> Iterator[Server]:
    with Server(most, head_limit_s) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.may_answer.set()
            server.shutdown()
            thread.join()
            server.hang_up()
            for connection in server.opened:
                connection.close()


def paused() -> bool:
    """For a client that trickles, and so that a wait does not spin."""
    return not threading.Event().wait(0.02)


def sent(connection: socket.socket, data: bytes) -> bool:
    try:
        connection.sendall(data)
    except ConnectionError:
        return False
    return True


def ended(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def test_where_all_are_being_answered_one_more_is_closed_at_once_until_a_place_is_free() -> None:
    with serving(most=2) as server:
        answered = [server.ask() for _ in range(2)]

        refused = server.open()
        assert ended(refused)

        server.may_answer.set()
        assert [connection.recv(6) for connection in answered] == [b"answer"] * 2
        for _ in range(6):  # each gives its place back
            last = server.ask()
            assert last.recv(6) == b"answer"
            assert last.recv(1) == b""


def test_who_asks_finds_a_place_among_many_who_do_not() -> None:
    with serving(most=4) as server:
        server.may_answer.set()
        before = threading.active_count()
        silent = [server.open() for _ in range(20)]
        for connection in silent:
            connection.sendall(ASK[:5])

        asking = server.ask()

        assert asking.recv(6) == b"answer"
        assert all(ended(connection) for connection in silent[:16])
        wait_until(
            lambda: paused() and threading.active_count() - before <= 4, WAIT_S, "threads to end"
        )


def test_a_head_that_trickles_in_has_a_time_for_all_of_it() -> None:
    with serving(most=4, head_limit_s=0.3) as server:
        slow = server.open()
        slow.sendall(ASK[:5])
        wait_until(lambda: paused() and not sent(slow, b"x"), WAIT_S, "the server to hang up")

        server.may_answer.set()
        assert server.ask().recv(6) == b"answer"


def test_an_answer_may_take_longer_than_its_head() -> None:
    with serving(most=1, head_limit_s=0.05) as server:
        connection = server.ask()
        threading.Event().wait(0.3)
        server.may_answer.set()

        assert connection.recv(6) == b"answer"
