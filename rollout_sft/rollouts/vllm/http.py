"""Exchanges a request and a reply with a server over HTTP, within limits of time and size; checks every reply.

time       one deadline covers everything from the name lookup to the last byte, however slowly bytes arrive; whoever
           waits for a stream of events keeps the deadline and closes the stream
size       the limit follows from what was asked for; a body is never decompressed
place      redirects are not followed, cookies are not kept, and no proxy of the environment is used
content    a reply has the shape that was asked for; otherwise the error names address, status and an excerpt
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Any, ClassVar, TypeVar

import httpx2
from pydantic import BaseModel, ConfigDict, ValidationError

from rollout_sft.rollouts.vllm import WORKER_EXTENSION
from rollout_sft.rollouts.vllm.events import Events

R = TypeVar("R", bound="Reply")

AUTHORIZATION = "ROLLOUT_SERVER_AUTHORIZATION"
"""The environment variable whose value is sent as the header `Authorization`."""

_CONNECT_SECONDS = 10.0
"""The longest that one attempt to connect takes."""

_REUSE_SECONDS = 2.0
"""How long an idle connection is kept; vLLM's server closes its end after 5 s."""

_ERROR_BYTES = 4096
"""What is read of a reply that is an error."""

_START = f"Start it with VLLM_SERVER_DEV_MODE=1 and --worker-extension-cls {WORKER_EXTENSION}, see docs/vllm.md."


class ServerError(RuntimeError):
    """
    Raised when a server did not do what it was asked.

    Args:
        message (`str`):
            What happened and what to do.
        again (`bool`, *optional*, defaults to `False`):
            Whether asking again may help.
    """

    def __init__(self, message: str, *, again: bool = False):
        super().__init__(message)
        self.again = again


class Deadline:
    """
    The moment at which waiting ends.

    Args:
        seconds (`float`):
            From now on.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self._end = time.monotonic() + seconds
        self._paused: float | None = None

    def pause(self) -> None:
        """Stops the clock while nobody waits."""
        if self._paused is None:
            self._paused = self._end - time.monotonic()

    def resume(self) -> None:
        """Lets the clock run again."""
        if self._paused is not None:
            self._end, self._paused = time.monotonic() + self._paused, None

    @property
    def seconds_left(self) -> float:
        """Returns the seconds that are left; negative when it has passed."""
        paused = self._paused
        return self._end - time.monotonic() if paused is None else paused

    def left(self, waiting_for: str) -> float:
        """Returns the seconds that are left; raises [`ServerError`] when there are none."""
        left = self.seconds_left
        if left <= 0:
            raise self.passed(waiting_for)
        return left

    def passed(self, waiting_for: str) -> ServerError:
        """Makes the error that says what was waited for and how long."""
        return ServerError(f"{waiting_for} Gave up after {self.seconds:g} s (rollout_matching.vllm.timeout).")

    def sleep(self, seconds: float, waiting_for: str) -> None:
        """Waits, but not past the end."""
        time.sleep(min(seconds, self.left(waiting_for)))
        self.left(waiting_for)


class Reply(BaseModel):
    """The shape of a reply; types are taken literally: neither `"7"` nor `7.0` nor `true` is an integer."""

    hint: ClassVar[str] = ""
    """What to do about a reply of another shape."""

    model_config = ConfigDict(strict=True, frozen=True)


class Client:
    """
    Sends JSON to one server and returns what it replies.

    Args:
        url (`str`):
            Its address, without a path.
        connections (`int`):
            Idle connections to keep.
    """

    def __init__(self, url: str, *, connections: int):
        self._url = url
        # A loop in a separate thread can end an exchange at its deadline, at any point.
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rollout-http", daemon=True)
        self._thread.start()
        limits = httpx2.Limits(
            max_connections=None, max_keepalive_connections=connections, keepalive_expiry=_REUSE_SECONDS
        )
        # The transport alone: what a client adds to it is redirects, cookies, decompression and proxies.
        self._transport = httpx2.AsyncHTTPTransport(limits=limits, trust_env=False)
        self._headers = {"accept-encoding": "identity"}
        if AUTHORIZATION in os.environ:
            self._headers["authorization"] = _header_value(os.environ[AUTHORIZATION])

    def ask(
        self, method: str, path: str, body: Mapping[str, Any] | None, reply: type[R], deadline: Deadline, *, limit: int
    ) -> R:
        """
        Sends a request and waits for its reply.

        Args:
            method (`str`):
                `GET` or `POST`.
            path (`str`):
                Where, on the server.
            body (`Mapping`, *optional*):
                Sent as JSON.
            reply (`type[Reply]`):
                The shape of the reply.
            deadline (`Deadline`):
                When to give up.
            limit (`int`):
                Bytes that the reply may have.

        Raises:
            [`ServerError`]: for every failure of the server; no other exception is raised.
        """
        what = f"{self._url}{path}"
        late = f"{what} did not answer in time."
        exchange = self._exchange(method, what, body, deadline.left(late), limit)
        try:
            content = asyncio.run_coroutine_threadsafe(exchange, self._loop).result()
        except TimeoutError:
            raise deadline.passed(late) from None
        return parse(reply, what, content)

    def stream(
        self,
        path: str,
        body: Mapping[str, Any] | Callable[[], Mapping[str, Any]],
        take: Callable[[bytes], bool],
        *,
        limit: int,
    ) -> Future[None]:
        """
        Sends a request and hands over the events of its reply as they arrive. Returns at once.

        Args:
            path (`str`):
                Where, on the server.
            body (`Mapping` or `Callable`):
                Sent as JSON; a function that takes long to make it is called in a thread.
            take (`Callable[[bytes], bool]`):
                Called with the data of each event, in the thread that reads from the server. When it returns True,
                the connection is closed; what it raises, the future raises.
            limit (`int`):
                Bytes that the reply may have.

        Returns:
            `Future[None]`: done when `take` has returned True; raises [`ServerError`] for every failure of the
            server. Cancelling it closes the connection. It has no time limit.
        """
        return asyncio.run_coroutine_threadsafe(self._stream(f"{self._url}{path}", body, take, limit), self._loop)

    async def _exchange(
        self, method: str, what: str, body: Mapping[str, Any] | None, seconds: float, limit: int
    ) -> bytes:
        async with asyncio.timeout(seconds), self._reply(method, what, body) as response:
            return await _read(what, response, limit)

    async def _stream(
        self,
        what: str,
        body: Mapping[str, Any] | Callable[[], Mapping[str, Any]],
        take: Callable[[bytes], bool],
        limit: int,
    ) -> None:
        events, size, piece = Events(), 0, b""
        sent = await asyncio.to_thread(body) if callable(body) else body
        async with self._reply("POST", what, sent) as response:
            async for piece in response.aiter_raw():
                size += len(piece)
                if size > limit:
                    raise _too_large(what, limit, piece)
                try:
                    found = events.feed(piece)
                except ValueError as error:
                    raise _wrong(what, str(error), piece) from None
                if any(map(take, found)):
                    return
        try:
            events.end()
        except ValueError as error:
            raise _wrong(what, str(error), piece) from None
        raise ServerError(f"{what} broke off before the last event of its answer.", again=True)

    @asynccontextmanager
    async def _reply(self, method: str, what: str, body: Mapping[str, Any] | None) -> AsyncIterator[httpx2.Response]:
        """Yields a reply whose body can be read, and closes it; all that fails on the way is a [`ServerError`]."""
        request = httpx2.Request(
            method, what, headers=self._headers, json=body, extensions={"timeout": {"connect": _CONNECT_SECONDS}}
        )
        try:
            response = await self._transport.handle_async_request(request)
            try:
                if response.status_code != 200:
                    raise _refusal(what, response.status_code, await _beginning(response, _ERROR_BYTES))
                encoding = response.headers.get("content-encoding", "identity")
                if encoding != "identity":
                    raise ServerError(
                        f"{what} answered 200 with a body in the encoding {excerpt(encoding, 40)!r}, which was not "
                        "asked for. Turn off the compression of whatever is between trainer and server."
                    )
                yield response
            finally:
                await response.aclose()
        except httpx2.TimeoutException:  # one attempt to connect, of several
            raise ServerError(f"{what} did not answer in time.", again=True) from None
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, UnicodeError) as error:
            raise ServerError(
                f"{what} cannot be reached or broke off ({type(error).__name__}: {excerpt(str(error), 100)}): the "
                "server is down, or has another address.",
                again=True,
            ) from None

    def close(self) -> None:
        """Closes the connections and ends the thread; the client is not used again."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        """Closes the streams that are still open, and the connections."""
        streams = asyncio.all_tasks() - {asyncio.current_task()}
        for stream in streams:
            stream.cancel()
        await asyncio.gather(*streams, return_exceptions=True)
        await self._transport.aclose()
        await self._loop.shutdown_default_executor()


def parse(reply: type[R], what: str, content: bytes) -> R:
    """Returns a reply of the shape `reply`; raises [`ServerError`] for any other, which names the address `what`."""
    try:
        return reply.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = "".join(f"{key}: " for key in first["loc"])
        raise _wrong(what, place + first["msg"], content, reply.hint) from None


def excerpt(text: str | bytes, length: int = 300) -> str:
    """Shortens what a server sent for a message: one line, without control characters and terminal escapes."""
    if isinstance(text, bytes):
        text = text[: 4 * length].decode("utf-8", errors="replace")
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= length else f"{line[:length]}..."


async def _read(what: str, response: httpx2.Response, limit: int) -> bytes:
    content = await _beginning(response, limit)
    if len(content) > limit:
        raise _too_large(what, limit, content)
    return content


async def _beginning(response: httpx2.Response, enough: int) -> bytes:
    """Reads a body, and stops where it has more bytes than are enough."""
    content = bytearray()
    async for piece in response.aiter_raw():
        content += piece
        if len(content) > enough:
            break
    return bytes(content)


def _too_large(what: str, limit: int, content: bytes) -> ServerError:
    return ServerError(
        f"{what} answered 200 with more than the {limit:,} bytes that an answer can have. It begins: {excerpt(content)}"
    )


def _wrong(what: str, problem: str, content: bytes, hint: str = "") -> ServerError:
    return ServerError(
        f"{what} answered 200 with something else than what was asked for: {excerpt(problem)}. "
        f"It begins: {excerpt(content)} {hint}"
    )


def _refusal(what: str, status: int, content: bytes) -> ServerError:
    """Makes the error for a status other than 200."""
    text = excerpt(content, 600)
    if 300 <= status < 400:
        return ServerError(
            f"{what} answered {status}, a redirect, and redirects are not followed: {text} Set rollout_matching.vllm."
            "base_url to the address of the server itself."
        )
    if status == 404 and what.endswith("/inference/v1/generate"):
        return ServerError(
            f"{what} answered 404: {text} Rollouts of an image model need this route: start the server with "
            "--enable-scale-out, see docs/vllm.md. Without a server, rollout_matching.vllm.mode: colocate and "
            "rollout_matching.rollout_backend: hf work."
        )
    if status == 404:
        return ServerError(f"{what} answered 404: {text} The server was not started for training. {_START}")
    hint = f" {_START}" if "has no attribute 'rollout_" in text else ""
    # A dying server answers its last requests with errors; only an error in what we sent is final.
    passing = status >= 500 and not what.endswith("/collective_rpc")
    return ServerError(f"{what} answered {status}: {text}{hint}", again=passing)


def _header_value(value: str) -> str:
    if not (value.isascii() and value.isprintable()):
        raise ValueError(f"the environment variable {AUTHORIZATION} holds a character that a header cannot have.")
    return value
