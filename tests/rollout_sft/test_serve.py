"""A server for training listens on this machine alone, whether `serve` or a command of the documentation starts it."""

import re
from pathlib import Path

from rollout_sft.serve import server_command

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_serve_listens_on_this_machine_alone():
    command = server_command("model", port=8000, max_model_len=64)
    assert command[command.index("--host") + 1] == "127.0.0.1"


def test_every_command_of_the_docs_gives_its_host():
    text = "\n".join(path.read_text().replace("\\\n", "") for path in sorted(DOCS.rglob("*.md")))
    commands = re.findall(r"^.*(?:openai\.api_server|vllm serve).*--model.*$", text, re.M)
    assert commands
    assert [command for command in commands if "--host 127.0.0.1" not in command] == []
