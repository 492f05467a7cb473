"""README.md beside a model that was made and not trained."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tutelage.core.errors import OutputError
from tutelage.recipes.card import LOADING, versions


def write_making_card(folder: Path, about: str, facts: Mapping[str, Any]) -> None:
    """What it was made of and how, how to load it, and the versions that made it.

    Raises:
        OutputError: the folder cannot be written.
    """
    header = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    packages = versions()["packages"]
    lines = [
        f"---\n{yaml.safe_dump({**header, 'tags': ['tutelage']}, sort_keys=False)}---",
        f"# {folder.name}",
        about,
        "\n".join(f"- {name}: {_shown(value)}" for name, value in facts.items()),
        "## How to load it",
        LOADING,
        "## Made with",
        ", ".join(f"{name} {version}" for name, version in packages.items() if version),
    ]
    path = folder / "README.md"
    try:
        path.write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        message = (
            f"{path} cannot be written ({error.strerror}); it must be in a folder you may write "
            "to. Free some room, or choose another folder."
        )
        raise OutputError(message) from error


def _shown(value: Any) -> str:  # noqa: ANN401 - YAML values
    if not isinstance(value, Mapping):
        return str(value)
    return "`" + yaml.safe_dump(dict(value), default_flow_style=True, width=10_000).strip() + "`"
