"""Adds to an error where it happened, so that a message names the sample and the target builder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


@contextmanager
def noted(where: str) -> Iterator[None]:
    """Adds to an error where it happened; the type and the message of the error do not change."""
    try:
        yield
    except Exception as error:
        error.add_note(where)
        raise


@contextmanager
def naming(target_builder: Any, sample: Mapping[str, Any]) -> Iterator[None]:
    """Adds to an error which target builder had which sample."""
    kind = type(target_builder)
    builder, columns = f"{kind.__module__}:{kind.__qualname__}", ", ".join(map(str, sample))
    with noted(f"while the target builder {builder} had sample {sample.get('id')!r} with {columns}"):
        yield
