"""Calls the routes of one vLLM server, and checks the shape of each reply."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Annotated, Any, Self
from urllib.parse import urlsplit

from pydantic import FailFast, Field, Json

from rollout_sft.inputs.base import InputAdapter
from rollout_sft.inputs.text import TextInputs
from rollout_sft.rollouts.base import RolloutRequest
from rollout_sft.rollouts.vllm import image_prompts
from rollout_sft.rollouts.vllm.completion import Completion
from rollout_sft.rollouts.vllm.http import Client, Deadline, Reply

_CONTROL_BYTES = 1 << 20
"""What the reply to anything but a completion may have; the largest is the model's configuration."""

_TOKEN_BYTES = 512
"""What a completion may have for each token of prompt and response: its id and its text, escaped."""

Count = Annotated[int, Field(strict=False, ge=0)]
"""vLLM returns the result of a worker's method as a string."""


class _Model(Reply):
    id: str
    max_model_len: Annotated[int, Field(ge=1)]


class _Models(Reply):
    hint = "It takes vLLM 0.30 or newer to serve rollouts."
    data: Annotated[list[_Model], Field(min_length=1), FailFast()]


class _WorldSize(Reply):
    world_size: Annotated[int, Field(ge=1, le=65536)]


class _WeightInfo(Reply):
    weight_version: str


class _Done(Reply):
    """Accepts a reply with any content."""


class _Nothing(Reply):
    """Accepts any body, as of a route that answers without one."""

    @classmethod
    def model_validate_json(cls, *args: Any, **kwargs: Any) -> Self:
        """Returns the reply without reading the body."""
        return cls()


class _Reset(Reply):
    success: bool


class _Results(Reply):
    results: Annotated[list[Any], Field(min_length=1)]


class _Configurations(Reply):
    results: Annotated[list[Json[dict[str, Any]]], Field(min_length=1), FailFast()]


class _Counts(Reply):
    results: Annotated[list[Count], Field(min_length=1), FailFast()]


class _Names(Reply):
    results: Annotated[list[str], Field(min_length=1), FailFast()]


class Server:
    """
    Calls the routes of one server. Each raises [`ServerError`] when the server does not do what it was asked.

    Args:
        url (`str`):
            Its address, without a path.
        concurrency (`int`):
            Completions under way at a time.
        inputs (`InputAdapter`, *optional*):
            Collapses the prompts of an image model, which is asked at another route.

    Attributes:
        max_model_len (`int`):
            Most tokens of a prompt and its response.
        devices (`int`):
            Workers of the server; its share of the requests.
    """

    def __init__(self, url: str, *, concurrency: int, inputs: InputAdapter | None = None):
        self.url = url
        self.max_model_len = 0
        self.devices = 1
        self._model = ""
        self.concurrency = concurrency
        self._inputs = inputs or TextInputs()
        self._client = Client(url, connections=concurrency)

    @property
    def address(self) -> tuple[str | None, int]:
        """Returns host and port."""
        parts = urlsplit(self.url)
        return parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)

    def read_limits(self, deadline: Deadline) -> None:
        """Asks for the served model's name and length and the number of workers."""
        model = self._get("/v1/models", _Models, deadline).data[0]
        self._model, self.max_model_len = model.id, model.max_model_len
        self.devices = self._get("/get_world_size", _WorldSize, deadline).world_size

    def weight_version(self, deadline: Deadline) -> str:
        """Returns the marker that was set last; `default` after a start."""
        return self._get("/weight_info", _WeightInfo, deadline).weight_version

    def set_weight_version(self, marker: str, deadline: Deadline) -> None:
        """Sets the marker."""
        self._post("/update_weight_version", {"new_version": marker}, _Done, deadline)

    def check_route(self, deadline: Deadline) -> None:
        """Generates one token where an image model is asked, so that a server without the route is refused early."""
        if self._inputs.media_token_ids:
            self.answer(RolloutRequest(prompt_ids=[0], seed=0), {"max_tokens": 1, "ignore_eos": True}, deadline)

    def reset_encoder_cache(self, deadline: Deadline) -> None:
        """Forgets what an image model has seen in images; does nothing for text."""
        if self._inputs.media_token_ids:
            self._post("/reset_encoder_cache", {}, _Nothing, deadline)

    def reset_prefix_cache(self, deadline: Deadline) -> bool:
        """Forgets cached keys and values; returns False where requests that still run hold some."""
        return self._post("/reset_prefix_cache", {}, _Reset, deadline).success

    def call_workers(self, method: str, kwargs: Mapping[str, Any], deadline: Deadline) -> None:
        """Runs a method of all workers."""
        self._call(method, kwargs, _Results, deadline)

    def configuration(self, deadline: Deadline) -> dict[str, Any]:
        """Returns the configuration of the served model."""
        return self._call("rollout_description", {}, _Configurations, deadline).results[0]

    def join_stream(self, meeting: Mapping[str, Any], deadline: Deadline) -> list[int]:
        """Has the workers join a stream of weights; returns their ranks in it."""
        return self._call("rollout_join", meeting, _Counts, deadline).results

    def open_streams(self, deadline: Deadline) -> set[str]:
        """Returns the names of the streams that the workers have open; an empty one where there is none."""
        return set(self._call("rollout_stream", {}, _Names, deadline).results)

    def receive(self, deadline: Deadline) -> list[int]:
        """Has the workers load what comes through their stream; returns how many tensors each loaded."""
        return self._call("rollout_receive", {}, _Counts, deadline).results

    def complete(
        self, request: RolloutRequest, knobs: Mapping[str, Any], enough: Callable[[list[int]], bool]
    ) -> tuple[Completion, Future[None]]:
        """
        Starts one completion. Each request needs a separate one, because a call has one seed for all prompts.

        Args:
            request (`RolloutRequest`):
                The prompt.
            knobs (`Mapping`):
                All fields of vLLM's `SamplingParams` but the seed.
            enough (`Callable[[list[int]], bool]`):
                Called with all tokens so far whenever some have arrived, in the thread that reads from the server.
                When it returns True, the request ends: the server stops working on it.

        Returns:
            `tuple[Completion, Future[None]]`: what has arrived so far, and when it is whole. The future raises
            [`ServerError`]; cancelling it ends the request.
        """
        path = "/inference/v1/generate" if self._inputs.media_token_ids else "/v1/completions"
        completion = Completion(self.url, path, knobs["max_tokens"], enough)
        common = {"model": self._model, "return_token_ids": True, "stream": True}

        def for_images() -> Mapping[str, Any]:
            return {
                **common,
                "token_ids": self._inputs.collapse(request.prompt_ids, request.images),
                "content_parts": image_prompts.content_parts(request, self._inputs),
                "sampling_params": {"seed": request.seed, "detokenize": False, **knobs},
            }

        text = {**common, "prompt": request.prompt_ids, "seed": request.seed, **knobs}
        limit = _CONTROL_BYTES + _TOKEN_BYTES * (len(request.prompt_ids) + knobs["max_tokens"])
        body = for_images if self._inputs.media_token_ids else text
        return completion, self._client.stream(path, body, completion.take, limit=limit)

    def answer(self, request: RolloutRequest, knobs: Mapping[str, Any], deadline: Deadline) -> Completion:
        """Returns one whole completion."""
        completion, whole = self.complete(request, knobs, lambda _: False)
        late = f"{completion.address} did not answer in time."
        try:
            whole.result(deadline.left(late))
        except TimeoutError:
            whole.cancel()
            raise deadline.passed(late) from None
        return completion

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    def _call(self, method: str, kwargs: Mapping[str, Any], reply: Any, deadline: Deadline) -> Any:
        body = {"method": method, "kwargs": dict(kwargs)}
        return self._post("/collective_rpc", body, reply, deadline, limit=_CONTROL_BYTES * self.devices)

    def _get(self, path: str, reply: Any, deadline: Deadline) -> Any:
        return self._client.ask("GET", path, None, reply, deadline, limit=_CONTROL_BYTES)

    def _post(
        self, path: str, body: Mapping[str, Any], reply: Any, deadline: Deadline, *, limit: int = _CONTROL_BYTES
    ) -> Any:
        return self._client.ask("POST", path, body, reply, deadline, limit=limit)
