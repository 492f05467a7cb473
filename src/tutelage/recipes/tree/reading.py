"""From YAML files, preset names and dotted overrides to one plain tree of settings."""

import difflib
import re
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, TypeAlias, cast, final

import yaml
from typing_extensions import override

from tutelage.core.errors import ConfigError

Plain: TypeAlias = dict[str, Any]

_BASE = "base"
_MOST_BASES = 8


@final
class _Loader(yaml.SafeLoader):
    """YAML as people write settings: 1e-5 is a number, and a name may be given once."""

    @override
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(getattr(key, "value", key))
            if name in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{name} is given twice", key.start_mark
                )
            seen.add(name)
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


def preset_names() -> list[str]:
    """Names of the recipes that ship inside the package."""
    folder = resources.files("tutelage.recipes.presets")
    return sorted(file.name[: -len(".yaml")] for file in folder.iterdir() if _is_yaml(file.name))


def _is_yaml(name: str) -> bool:
    return name.endswith(".yaml")


def read_recipe(source: str, overrides: Iterable[str] = ()) -> Plain:
    """The settings of a preset (by name) or a file (by path), after `base` and the overrides.

    A recipe may start from another one with `base: NAME_OR_PATH`; what it says itself wins.
    """
    tree = _with_base(_read_source(source), Path(source).parent, source, depth=0)
    tree.setdefault("name", Path(source).stem)
    for text in overrides:
        tree = overridden(tree, text)
    return tree


def _with_base(tree: Plain, folder: Path, source: str, *, depth: int) -> Plain:
    base = tree.pop(_BASE, None)
    if base is None:
        return tree
    if not isinstance(base, str) or depth >= _MOST_BASES:
        raise ConfigError(
            f"base is {base!r} in {source}; it must be the name of a preset or the path of a "
            "recipe that does not lead back to itself. Correct it or leave it out."
        )
    beside = folder / base
    found = str(beside) if beside.is_file() else base
    return merged(_with_base(_read_source(found), Path(found).parent, found, depth=depth + 1), tree)


def _read_source(source: str) -> Plain:
    path = Path(source)
    if source in preset_names():
        text = (resources.files("tutelage.recipes.presets") / f"{source}.yaml").read_text("utf-8")
        return parse(text, f"preset {source}")
    try:
        return parse(path.read_text(encoding="utf-8"), source)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ConfigError(_no_such_recipe(source)) from error
    except IsADirectoryError as error:
        raise ConfigError(
            f"{source} is a folder; it must be a recipe file or a preset. "
            f"Name the file inside it, such as {path / 'recipe.yaml'}."
        ) from error
    except (UnicodeDecodeError, PermissionError) as error:
        raise ConfigError(
            f"{source} cannot be read ({error}); it must be a YAML file in UTF-8. Name another."
        ) from error


def _no_such_recipe(source: str) -> str:
    names = preset_names()
    near = difflib.get_close_matches(source, names, n=1)
    advice = f"Did you mean {near[0]}?" if near else f"The presets are: {', '.join(names)}."
    return f"{source!r} is not a preset and no such file exists. {advice}"


def parse(text: str, source: str) -> Plain:
    """The mapping that a YAML text holds.

    Raises:
        ConfigError: the text is not YAML, names something twice, or is no mapping; the message
            names the line.
    """
    try:
        tree = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader with a float rule
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{source}{line}: {error.problem}. Correct the YAML there.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: {error}. Correct the YAML there.") from error
    if tree is None:
        tree = {}
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise ConfigError(
            f"{source} is a {type(tree).__name__}; it must be a mapping such as "
            "`objective: {kind: forward_kl}`. Write settings as `name: value`."
        )
    return cast("Plain", tree)


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> Plain:
    """Two trees as one; the second wins. Where it names another `kind`, it replaces the whole."""
    result = dict(below)
    for name, value in above.items():
        old = result.get(name)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            replaced = "kind" in value and value["kind"] != old.get("kind")
            result[name] = dict(value) if replaced else merged(old, value)
        else:
            result[name] = value
    return result


def overridden(tree: Mapping[str, Any], text: str) -> Plain:
    """A copy of a tree with one `dotted.path=value` put in; the value is read as YAML."""
    path, equals, value = text.partition("=")
    names = path.strip().split(".")
    if not equals or not all(names):
        raise ConfigError(
            f"{text!r} is not an override; it must be PATH=VALUE, such as "
            "objective.temperature=2. Write it without spaces around the sign."
        )
    try:
        parsed = yaml.load(value, Loader=_Loader)  # noqa: S506 - a SafeLoader with a float rule
    except yaml.YAMLError as error:
        raise ConfigError(
            f"{path} is given as {value!r}, which is no YAML value; quote it for the shell, "
            "such as 'objective.terms=[{...}]'."
        ) from error
    result = _put(tree, names, parsed, at="")
    return cast("Plain", result)


def _put(node: Any, names: list[str], value: Any, *, at: str) -> Any:  # noqa: ANN401 - YAML values
    if not names:
        return value
    first, *rest = names
    here = f"{at}.{first}" if at else first
    if isinstance(node, list) and first.isdigit() and int(first) < len(node):
        place = int(first)
        return [*node[:place], _put(node[place], rest, value, at=here), *node[place + 1 :]]
    if node is None:
        node = {}
    if not isinstance(node, Mapping):
        raise ConfigError(
            f"{at} is {node!r}, so {here} cannot be set; it must be a mapping of settings. "
            f"Give the whole of {at} instead."
        )
    return {**node, first: _put(node.get(first), rest, value, at=here)}
