"""A real HTTP server on a socket that answers whatever a test tells it to, byte by byte if need be."""

import json
import socket
import threading
import time
from contextlib import suppress


def answer(body, *, status=200, headers=(), length=None):
    """The bytes of a whole reply; `body` is bytes, or anything that becomes JSON."""
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body) if length is None else length}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def events(*bodies, last=b"[DONE]"):
    """The bytes of a whole stream of events; each body is bytes, or anything that becomes JSON."""
    data = [body if isinstance(body, bytes) else json.dumps(body).encode() for body in bodies]
    lines = b"".join(b"data: " + each + b"\n\n" for each in [*data, last])
    return answer(lines, headers=["Content-Type: text/event-stream"])


class HostileServer:
    """
    `act(path, body)` gives the pieces of a reply, sent as they come; a number among them is a pause in seconds.

    Attributes: `asked`, the requests so far as (head, body); `sent`, bytes that a client took.
    """

    def __init__(self, act):
        self.act, self.asked, self.sent = act, [], 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._closed = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._closed.set()
        self._listener.close()

    def _accept(self):
        while not self._closed.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=[connection], daemon=True).start()

    def _serve(self, connection):
        with connection, connection.makefile("rb") as lines, suppress(OSError, ValueError):
            while request := self._read(lines):
                self.asked.append(request)
                for piece in self.act(request[0].split()[1], request[1]):
                    if self._closed.is_set():
                        return
                    if isinstance(piece, bytes):
                        connection.sendall(piece)
                        self.sent += len(piece)
                    elif piece is None:
                        return  # cuts the connection
                    else:
                        time.sleep(piece)

    @staticmethod
    def _read(lines):
        head, length = "", 0
        while (line := lines.readline().decode("latin-1")).strip():
            head += line
            if line.lower().startswith("content-length:"):
                length = int(line.split(":")[1])
        return (head, lines.read(length)) if head else None
