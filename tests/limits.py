"""What reading an input may cost, whatever the input holds."""

import time
import tracemalloc

SECONDS = 2.0
PEAK_BYTES = 200_000_000
MESSAGE = 1000


def refusal(read, *arguments):
    """
    Reads an input, or has it refused; returns the message, or None where it was read.

    Anything but the two documented kinds of error is let through, and fails the test that calls this.
    """
    tracemalloc.start()
    try:
        message, seconds = _refusal(read, *arguments)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    if seconds > SECONDS:  # counting memory costs more than the reading itself
        _, seconds = _refusal(read, *arguments)
    assert seconds <= SECONDS, seconds
    assert peak <= PEAK_BYTES, peak
    return message


def _refusal(read, *arguments):
    start, message = time.process_time(), None
    try:
        read(*arguments)
    except (ValueError, FileNotFoundError) as error:
        if isinstance(error, UnicodeError):
            raise  # a raw error of Python's, although it is a ValueError
        message = str(error)
    seconds = time.process_time() - start
    assert message is None or 0 < len(message) < MESSAGE, len(message)
    return message, seconds
