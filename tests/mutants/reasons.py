"""Why a change of the sample may survive: (file, line before, line after) -> reason."""

REASONS: dict[tuple[str, str, str], str] = {}
