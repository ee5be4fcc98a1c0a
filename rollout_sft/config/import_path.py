"""Imports the user's objects that a configuration names by import path: `module:name`."""

from __future__ import annotations

import importlib
import inspect
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_IMPORT_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def is_import_path(text: str) -> bool:
    """Returns whether a text has the form `module:name`."""
    return _IMPORT_PATH.fullmatch(text) is not None


def meant_import_path(text: str) -> str | None:
    """Returns `module:name` for `module.name` if there is such a module and no such file or folder."""
    module, _, name = text.rpartition(".")
    if not module or not is_import_path(f"{module}:{name}") or Path(text).exists():
        return None
    try:
        found = find_spec(module)
    except (ImportError, ValueError, AttributeError):
        return None
    return f"{module}:{name}" if found else None


def call_import_path(path: str, *arguments: Any, key: str, takes: str, **keywords: Any) -> Any:
    """
    Imports what an import path names and calls it.

    Args:
        path (`str`):
            `module:name`; Python looks for the module in the working directory and among the installed packages.
        arguments, keywords:
            The arguments of the call.
        key (`str`):
            The key of the configuration that holds the path.
        takes (`str`):
            What the key takes, for messages.

    Returns:
        `Any`: the result of the call.

    Raises:
        `ValueError`: the path has another form, cannot be imported, or names something that cannot be called with
            these arguments; the message names the key and the path.
    """
    called = import_path(path, key=key, takes=takes)
    try:
        signature = inspect.signature(called)
    except (TypeError, ValueError):  # not callable, or written in C
        signature = None
    if not callable(called):
        raise ValueError(f"{key} is {path!r}, a {type(called).__name__}; it takes {takes}.")
    try:
        if signature is not None:
            signature.bind(*arguments, **keywords)
    except TypeError as error:
        raise ValueError(
            f"{key} is {path!r}, which has the signature {signature}: {error}. It takes {takes}."
        ) from None
    return called(*arguments, **keywords)


def import_path(path: str, *, key: str, takes: str) -> Any:
    """
    Imports what an import path names.

    Args:
        path, key, takes (`str`):
            As in [`call_import_path`].

    Raises:
        `ValueError`: the path has another form or cannot be imported.
    """
    if not is_import_path(path):
        meant = meant_import_path(path)
        raise ValueError(f"{key} is {path!r}; it takes {takes}.{f' Write {meant}.' if meant else ''}")
    module, _, name = path.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for attribute in name.split("."):
            found = getattr(found, attribute)
    except Exception as error:  # the user's module may raise anything while it is imported
        raise ValueError(
            f"{key} is {path!r}, which cannot be imported: {type(error).__name__}: {error}. It takes {takes}; modules "
            "are looked for in the working directory and among the installed packages."
        ) from error
    return found
