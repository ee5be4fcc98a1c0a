def start():
    """What the first launch of a kernel does without a driver."""
    raise RuntimeError("0 active drivers ([]). There should only be one.")
