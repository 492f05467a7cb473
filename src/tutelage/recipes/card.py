"""What goes with a trained student: a model card, and the versions of all that made it."""

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from tutelage.core.errors import OutputError
from tutelage.recipes.config import Recipe, to_yaml
from tutelage.recipes.rows import described

PACKAGES = (
    "tutelage",
    "torch",
    "transformers",
    "accelerate",
    "tokenizers",
    "safetensors",
    "datasets",
    "numpy",
    "pydantic",
)
_COLUMNS = ("reward", "perplexity", "forward_kl", "reverse_kl", "top1_agreement", "num_parameters")

LOADING = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("PATH")
tokenizer = AutoTokenizer.from_pretrained("PATH")
```"""


def versions() -> dict[str, Any]:
    """Packages, Python, machine, threads, and the commit of the working folder if it has one."""
    return {
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "packages": {name: _version(name) for name in PACKAGES},
        "git_commit": _commit(),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    command = ["git", "rev-parse", "HEAD"]
    try:
        # No input of the user's reaches this command line.
        answer = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None


def write_card(folder: Path, recipe: Recipe, summary: Mapping[str, Any]) -> None:
    """Write README.md beside a saved student: teacher, objective, data, results, versions.

    Raises:
        OutputError: the folder cannot be written.
    """
    path = folder / "README.md"
    try:
        path.write_text(card(recipe, summary), encoding="utf-8")
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written ({error.strerror}); it must be in a folder you may write "
            "to. Free some room, or choose another output."
        ) from error


def card(recipe: Recipe, summary: Mapping[str, Any]) -> str:
    """The model card as Markdown with the hub's header."""
    teacher = getattr(recipe.teacher, "model", None) if recipe.teacher else None
    other = {None: "none", "toy": "a toy", "self": "itself"}
    kind = None if recipe.teacher is None else recipe.teacher.kind
    header: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["tutelage", "distillation", recipe.objective.kind],
    }
    if teacher is not None and "/" in teacher and not Path(teacher).exists():
        header["base_model"] = teacher
    made_with = versions()
    packages = {name: version for name, version in made_with["packages"].items() if version}
    facts = (
        ("teacher", f"`{teacher or other.get(kind, kind)}`"),
        ("student", _one_line(recipe.student.model_dump(mode="json", exclude_none=True))),
        ("objective", _one_line(recipe.objective.model_dump(mode="json"))),
        ("move of the target", _one_line(recipe.move.model_dump(mode="json"))),
        ("data", f"`{recipe.rollouts.data}`"),
        ("rollouts", described(recipe.rollouts)),
        ("steps", f"{recipe.training.num_steps}, seed {recipe.seed}"),
    )
    made_of = ", ".join(f"{name} {version}" for name, version in packages.items())
    lines = [
        f"---\n{yaml.safe_dump(header, sort_keys=False)}---",
        f"# {recipe.name}",
        recipe.description or "A student trained with Tutelage.",
        "\n".join(f"- {name}: {value}" for name, value in facts),
        "## Results on held-out rows",
        _results(summary) or "Nothing was measured.",
        *[f"- {note}" for note in summary.get("notes", [])],
        "## How to load it",
        LOADING,
        "## The recipe",
        f"```yaml\n{to_yaml(recipe)}```",
        "## Made with",
        f"Python {made_with['python']} on {made_with['machine']}; {made_of}",
    ]
    return "\n\n".join(lines) + "\n"


def _one_line(settings: Mapping[str, Any]) -> str:
    return "`" + yaml.safe_dump(dict(settings), default_flow_style=True, width=10_000).strip() + "`"


def _results(summary: Mapping[str, Any]) -> str:
    rows = summary.get("rows", [])
    columns = [name for name in _COLUMNS if any(row.get(name) is not None for row in rows)]
    if not columns:
        return ""
    head = f"| | {' | '.join(name.replace('_', ' ') for name in columns)} |"
    rule = "|---" * (len(columns) + 1) + "|"
    body = [
        f"| {row['name']} | {' | '.join(_number(row.get(name)) for name in columns)} |"
        for row in rows
    ]
    return "\n".join([head, rule, *body])


def _number(value: int | float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
