"""One vLLM server over HTTP: its routes, a deadline for all of them, and errors that say what to do."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rollout_sft.rollouts.base import RolloutRequest
from rollout_sft.rollouts.vllm.backend import Answer

_START = (
    "Start it with VLLM_SERVER_DEV_MODE=1 and --worker-extension-cls rollout_sft.rollouts.vllm.worker.RolloutWorker, "
    "see docs/vllm.md."
)


class ServerError(RuntimeError):
    """
    A server did not do what it was asked.

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

    def left(self, waiting_for: str) -> float:
        """Seconds that are left; raises [`ServerError`] when there are none."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise ServerError(f"{waiting_for} Gave up after {self.seconds:g} s (rollout_matching.vllm.timeout).")
        return left

    def sleep(self, seconds: float, waiting_for: str) -> None:
        """Waits, but not past the end."""
        time.sleep(min(seconds, self.left(waiting_for)))
        self.left(waiting_for)


class Server:
    """
    The routes of one server.

    Args:
        url (`str`):
            Its address, without a path.
        concurrency (`int`):
            Completions under way at a time.

    Attributes:
        max_model_len (`int`):
            Most tokens of a prompt and its response.
        devices (`int`):
            Workers of the server; its share of the requests.
    """

    def __init__(self, url: str, *, concurrency: int):
        import requests

        self.url = url
        self.max_model_len = 0
        self.devices = 1
        self._model = ""
        self._concurrency = concurrency
        self._session = requests.Session()
        adapter = requests.adapters.HTTPAdapter(pool_connections=1, pool_maxsize=concurrency, max_retries=0)
        self._session.mount(url, adapter)
        self._session.trust_env = False  # a proxy for the outside world does not know the servers

    def read_limits(self, deadline: Deadline) -> None:
        """Asks for the served model's name and length and the number of workers."""
        model = self._ask("GET", "/v1/models", None, deadline)["data"][0]
        self._model, self.max_model_len = str(model["id"]), int(model["max_model_len"])
        self.devices = int(self._ask("GET", "/get_world_size", None, deadline)["world_size"])

    def weight_version(self, deadline: Deadline) -> str:
        """The marker that was set last; `default` after a start."""
        return str(self._ask("GET", "/weight_info", None, deadline)["weight_version"])

    def call_workers(self, method: str, kwargs: Mapping[str, Any], deadline: Deadline) -> list[Any]:
        """Runs a method of all workers."""
        results = self.post("/collective_rpc", {"method": method, "kwargs": dict(kwargs)}, deadline)["results"]
        return list(results)

    def post(self, path: str, body: Mapping[str, Any], deadline: Deadline) -> Any:
        """Sends JSON, returns JSON."""
        return self._ask("POST", path, body, deadline)

    def complete(
        self, requests: Sequence[RolloutRequest], knobs: Mapping[str, Any], deadline: Deadline, bar: Any
    ) -> list[Answer]:
        """One answer per request; each is a call of its own, because a call has one seed for all its prompts."""
        done = 0

        def ask(request: RolloutRequest) -> Answer:
            nonlocal done
            body = {
                "model": self._model,
                "prompt": request.prompt_ids,
                "seed": request.seed,
                "return_token_ids": True,
                **knobs,
            }
            choice = self.post("/v1/completions", body, deadline)["choices"][0]
            if choice.get("token_ids") is None or choice.get("prompt_token_ids") is None:
                raise ServerError(f"{self.url} returned no token ids; it takes vLLM 0.30 or newer to serve rollouts.")
            bar.update(1)
            done += 1
            return Answer(prompt_ids=list(choice["prompt_token_ids"]), token_ids=list(choice["token_ids"]))

        pool = ThreadPoolExecutor(min(self._concurrency, len(requests)))
        try:
            return list(pool.map(ask, requests))
        except ServerError:
            bar.update(-done)
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None, deadline: Deadline) -> Any:
        import requests

        what = f"{self.url}{path}"
        left = deadline.left(f"{what} did not answer in time.")
        try:
            reply = self._session.request(method, what, json=body, timeout=(min(left, 10.0), left))
        except requests.Timeout:
            # What timed out after all the time there was is raised by `left`; a connection may still come about.
            deadline.left(f"{what} did not answer in time.")
            raise ServerError(f"{what} did not answer in time.", again=True) from None
        except requests.RequestException as error:
            reason = type(error).__name__
            raise ServerError(
                f"{what} cannot be reached ({reason}): the server is down, or has another address.", again=True
            ) from error
        if reply.status_code == 404:
            raise ServerError(f"{what} does not exist: the server was not started for training. {_START}")
        if reply.status_code >= 400:
            text = " ".join(reply.text.split())[:600]
            hint = f" {_START}" if "has no attribute 'rollout_" in text else ""
            # A dying server answers its last requests with errors of its own; only what we sent wrong is final.
            passing = reply.status_code >= 500 and path != "/collective_rpc"
            raise ServerError(f"{what} answered {reply.status_code}: {text}{hint}", again=passing)
        return reply.json()
