"""Makes the pages that come from elsewhere: every YAML key from the dataclasses, the changelog, and the decisions.

A link of a page to a file outside of `docs` becomes the path of that file, because the site holds pages only.
"""

from __future__ import annotations

import dataclasses
import posixpath
import re
import types
import typing
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(!?)\[([^\]]+)\]\(([^)#\s]+)(#[^)]*)?\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Lists every decision in the navigation, in the order of the numbers."""
    trust = next(section["Trust"] for section in config.nav if "Trust" in section)
    entry = next(item for item in trust if isinstance(item, dict) and "Decisions" in item)
    entry["Decisions"] = [f"decisions/{path.name}" for path in sorted((ROOT / "docs" / "decisions").glob("*.md"))]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the changelog, which lies beside the README, and the reference of the YAML keys."""
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "changelog.md", content=changelog))
    files.append(File.generated(config, "reference/yaml_keys.md", content=yaml_keys()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Writes a link to a file that is no page as the file's path."""
    folder = posixpath.dirname(page.file.src_uri)

    def shown(link: re.Match[str]) -> str:
        picture, text, target, _ = link.groups()
        path = posixpath.normpath(posixpath.join("docs", folder, target))
        if "://" in target or picture or path.startswith("docs/"):
            return link.group()
        return text if path in text else f"{text} (`{path}`)"

    return LINK.sub(shown, markdown)


def yaml_keys() -> str:
    """Returns the page of all YAML keys: name, type, default and meaning of each, from the dataclasses."""
    from transformers import TrainingArguments

    from rollout_sft.config.arguments import RolloutSFTConfig
    from rollout_sft.config.decoding import Decoding
    from rollout_sft.config.sections import DataSpec, ModelSpec
    from rollout_sft.config.vllm import VLLMConfig

    inherited = {field.name for field in dataclasses.fields(TrainingArguments)}
    own = [field for field in dataclasses.fields(RolloutSFTConfig) if field.name not in inherited]
    sections: dict[str, list[Any]] = {"top": [], "data": [], "training": [], "rollout_matching": []}
    for field in own:
        sections[field.metadata.get("section", "training")].append(field)
    parts = [
        "# Every YAML key",
        "Made from the dataclasses that read the file. `training` also takes every field of "
        "[`TrainingArguments`](https://huggingface.co/docs/transformers/main_classes/trainer); "
        "[some are refused](../gradients.md#what-is-refused-warned-of-or-left-to-you).",
        _section("At the top", RolloutSFTConfig, sections["top"]),
        _section("`model`", ModelSpec, dataclasses.fields(ModelSpec)),
        _section("`data`", RolloutSFTConfig, sections["data"]),
        _section("`data.train` and `data.eval`", DataSpec, dataclasses.fields(DataSpec)),
        _section("`training`", RolloutSFTConfig, sections["training"]),
        _section("`rollout_matching`", RolloutSFTConfig, sections["rollout_matching"]),
        _section("`rollout_matching.decoding` and `eval_decoding`", Decoding, dataclasses.fields(Decoding)),
        _section("`rollout_matching.vllm`", VLLMConfig, dataclasses.fields(VLLMConfig)),
    ]
    return "\n\n".join(parts) + "\n"


def _section(title: str, owner: type, fields: Any) -> str:
    hints, meanings = typing.get_type_hints(owner, include_extras=True), _meanings(owner)
    keys = [
        f"- **`{field.name}`** ({_type(hints[field.name])}{_default(field, hints[field.name])}): {meanings[field.name]}"
        for field in fields
    ]
    return f"## {title}\n\n" + "\n".join(keys)


def _meanings(owner: type) -> dict[str, str]:
    """Reads what a docstring says of each argument; a field without a meaning is an error when the site is built."""
    lines = (owner.__doc__ or "").split("Args:\n", 1)[1].splitlines()
    indent = len(lines[0]) - len(lines[0].lstrip())
    found: dict[str, str] = {}
    names: list[str] = []
    for line in lines:
        depth = len(line) - len(line.lstrip())
        if line.strip() and depth < indent:
            break
        if depth == indent and line.strip():
            names = re.findall(r"\w+", line.split("(", 1)[0])
            found.update(dict.fromkeys(names, ""))
        else:
            found.update({name: f"{found[name]} {line.strip()}".strip() for name in names})
    links = re.compile(r"\[(`[^`]+`)\](?!\()")
    return {name: links.sub(lambda m: m.group(1).replace("~", ""), text) for name, text in found.items()}


def _type(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Annotated:
        return _type(typing.get_args(hint)[0])
    if typing.get_origin(hint) is typing.Literal:
        return " \\| ".join(f"`{choice}`" for choice in typing.get_args(hint))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(_type(part) for part in typing.get_args(hint) if part is not type(None))
    return str(hint.__name__ if typing.get_origin(hint) is None else hint).replace("typing.", "")


def _default(field: Any, hint: Any) -> str:
    limits = [limit for limit in getattr(hint, "__metadata__", ()) if hasattr(limit, "holds")]
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
        return f", default `{default}`" if default else ""
    if field.default is dataclasses.MISSING or not all(limit.holds(field.default) for limit in limits):
        return ", required"
    return "" if field.default is None else f", default `{field.default}`"
