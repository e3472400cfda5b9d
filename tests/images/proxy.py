"""A TCP proxy in front of a registry that breaks connections off, and servers that hang: real sockets, no mocks."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable
from contextlib import suppress


class Proxy:
    """Passes connections on; `spoil(head)` says for each request after how many bytes to break off, or what to answer."""

    def __init__(self, port: int, spoil: Callable[[str], int | bytes | None]) -> None:
        self._target, self._spoil = port, spoil
        self._server = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._server.getsockname()[1]}"
        self.heads: list[str] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._server.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError), client, socket.create_connection(("127.0.0.1", self._target)) as server:
            while head := _head(client):
                text = head.decode("latin-1")
                self.heads.append(text)
                spoiled = self._spoil(text)
                if isinstance(spoiled, bytes):
                    client.sendall(spoiled)
                    # What is still on its way is read: closing on it would reset the connection and lose the answer.
                    client.shutdown(socket.SHUT_WR)
                    client.settimeout(5)
                    while client.recv(65536):
                        pass
                    return
                # One request a connection keeps this simple; the registry closes it after its answer.
                server.sendall(re.sub(rb"(?i)\r\nconnection: [^\r]*", b"", head)[:-2] + b"Connection: close\r\n\r\n")
                length = re.search(r"(?i)\r\ncontent-length: (\d+)", text)
                left = int(length[1]) if length else 0
                if "transfer-encoding: chunked" in text.lower():
                    left = 1 << 40
                if spoiled is not None:
                    _pass(client, server, min(left, spoiled))
                    # Whatever has arrived is worked off before the end is seen.
                    server.shutdown(socket.SHUT_WR)
                    with suppress(OSError):
                        server.settimeout(5)
                        while server.recv(65536):
                            pass
                    return
                _pass(client, server, left)
                while data := server.recv(65536):
                    client.sendall(data)
                return


def _head(connection: socket.socket) -> bytes:
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        part = connection.recv(1)
        if not part:
            return b""
        data += part
    return data


def _pass(source: socket.socket, target: socket.socket, left: int) -> None:
    while left > 0 and (data := source.recv(min(65536, left))):
        target.sendall(data)
        left -= len(data)


class Silent:
    """Accepts connections and never answers, or answers with `first` and then nothing."""

    def __init__(self, first: bytes = b"") -> None:
        self._first = first
        self._server = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._server.getsockname()[1]}"
        self._kept: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """End all connections."""
        for each in [self._server, *self._kept]:
            each.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                self._kept.append(connection)
                if self._first:
                    connection.sendall(self._first)
