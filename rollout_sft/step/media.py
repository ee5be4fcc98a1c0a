"""Preprocesses the images of the next pack in a thread while this one trains.

Segments hold references to images, and pixels exist for two packs at a time: the one that trains and the next one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from rollout_sft.inputs.base import InputAdapter
from rollout_sft.step.collate import PackedBatch, with_media


class MediaLoader:
    """
    Adds pixels to the batches of a window, in the order in which they are trained.

    Args:
        adapter (`InputAdapter`):
            Decodes and preprocesses.
    """

    def __init__(self, adapter: InputAdapter):
        self._adapter = adapter
        self._thread: ThreadPoolExecutor | None = None
        self._ahead: deque[PackedBatch] = deque()
        self._next: Future[PackedBatch] | None = None

    def begin(self, batches: Sequence[PackedBatch]) -> None:
        """Begins a window, and begins to preprocess its first batch; forgets what was left of the window before."""
        for batch in batches:
            assert batch.images or self._adapter.image_token_id is None, "a forward of an image model holds no image"
        self._ahead, self._next = deque(batches), None
        self._look_ahead()

    def take(self, batch: PackedBatch) -> PackedBatch:
        """
        Returns the batch with its pixels, and begins to preprocess the next one.

        Args:
            batch (`PackedBatch`):
                The first batch of the window that was not taken yet.

        Raises:
            `Exception`: an image cannot be read; a note names the samples of the batch.
        """
        assert self._ahead, "more batches than the window has"
        assert self._ahead[0] is batch, "batches are trained in another order"
        ready = self._next
        self._ahead.popleft()
        self._next = None
        try:
            loaded = self.load(batch) if ready is None else ready.result()
        except Exception as error:
            error.add_note(f"while the images of samples {', '.join(s.sample_id for s in batch.segments)} were read")
            raise
        self._look_ahead()
        return loaded

    def load(self, batch: PackedBatch) -> PackedBatch:
        """Returns the batch with its pixels, at once; see [`~rollout_sft.step.collate.with_media`]."""
        return with_media(batch, self._adapter)

    def _look_ahead(self) -> None:
        if self._ahead and self._ahead[0].images:
            self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="images")
            self._next = self._thread.submit(self.load, self._ahead[0])
