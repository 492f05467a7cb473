"""What pydantic found wrong with a tree of settings, one line each, the dotted path first."""

import difflib
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from tutelage.core.errors import ConfigError

Tree: TypeAlias = Mapping[str, Any]
Path: TypeAlias = tuple[str | int, ...]

_PARTS_OF_A_CHOICE = ("tuple", "list", "dict", "set", "function", "nullable", "constrained")
_ALLOWED = {
    "greater_than": "greater than {gt}",
    "greater_than_equal": "{ge} or more",
    "less_than": "less than {lt}",
    "less_than_equal": "{le} or less",
    "finite_number": "a finite number",
    "multiple_of": "a multiple of {multiple_of}",
    "literal_error": "{expected}",
    "enum": "{expected}",
    "string_too_short": "a text of {min_length} or more characters",
    "too_short": "a list of {min_length} or more entries",
    "too_long": "a list of {max_length} or fewer entries",
    "string_pattern_mismatch": "a text that matches {pattern}",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping of names to values",
    "mapping_type": "a mapping of names to values",
    "model_type": "a mapping of settings",
    "model_attributes_type": "a mapping of settings",
    "dict_attributes_type": "a mapping of settings",
}
_ALLOWED_BY_START = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "path": "text",
    "none": "null",
}
_LONGEST_VALUE = 60
_NUM_GUESSES = 2


def as_config_error(error: ValidationError, root: type[BaseModel], raw: Tree) -> ConfigError:
    """The one error a user sees: a line for each problem, in the order of the settings."""
    return ConfigError("\n".join(complaints(error, root, raw)))


def complaints(error: ValidationError, root: type[BaseModel], raw: Tree) -> list[str]:
    """One line for each setting that is wrong, however many alternatives pydantic tried for it."""
    kept: dict[str, list[str]] = {}
    allowed: dict[str, list[str]] = {}
    values: dict[str, Any] = {}
    for problem in error.errors(include_url=False):
        path, owner = real_path(problem["loc"], raw)
        dotted = ".".join(str(part) for part in path)
        match problem["type"]:
            case "extra_forbidden":
                kept[dotted] = [unknown_setting(root, raw, path)]
            case "union_tag_invalid" | "union_tag_not_found":
                kept[dotted] = [_unknown_kind(dotted, problem, owner)]
            case "missing":
                kept[dotted] = [f"{dotted} is missing; it must be given. Add it to the recipe."]
            case "value_error" | "assertion_error":
                owners = owners_of(root, raw, path)
                kept.setdefault(dotted, []).append(_own_words(dotted, problem["msg"], owners))
            case _:
                allowed.setdefault(dotted, []).append(_allowed(problem))
                values[dotted] = problem["input"]
    for dotted, choices in allowed.items():
        choice = " or ".join(dict.fromkeys(choices))
        line = f"{dotted} is {_shown(values[dotted])}; it must be {choice}."
        kept.setdefault(dotted, []).append(line)
    return [line for lines in kept.values() for line in lines]


def unknown_setting(root: type[BaseModel], raw: Tree, path: Path) -> str:
    """The line about a name that no setting has, with the nearest name that one does have."""
    *parents, name = path
    owners = owners_of(root, raw, tuple(parents))
    names = [field for owner in owners for field in owner.model_fields]
    dotted = ".".join(str(part) for part in path)
    holder = _name_of(_at(raw, tuple(parents)), tuple(parents))
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    if near:
        return f"{dotted} is not a setting of {holder}. Did you mean {near[0]}?"
    kinds = _kinds_with(root, raw, path)
    if kinds:
        where = ".".join(str(part) for part in (*parents, "kind"))
        return (
            f"{dotted} is not a setting of {holder}, but of {' and '.join(kinds)}. Remove it, or "
            f"change {where}."
        )
    elsewhere = [found for found in every_path(root) if found.rsplit(".", 1)[-1] == name]
    if elsewhere:
        # Nearest first; one name may be found in several places.
        nearest = sorted(dict.fromkeys(elsewhere), key=lambda found: found.count("."))
        likely = " or ".join(nearest[:_NUM_GUESSES])
        return f"{dotted} is not a setting of {holder}. Did you mean {likely}?"
    listed = ", ".join(names) if names else "none"
    return f"{dotted} is not a setting of {holder}. Its settings are: {listed}."


def _kinds_with(root: type[BaseModel], raw: Tree, path: Path) -> list[str]:
    """Kinds that could stand where a setting was written, and know it."""
    *above, parent, name = (None, *path)
    if not isinstance(parent, str):
        return []
    owners = owners_of(root, raw, tuple(part for part in above if part is not None))
    fields = [owner.model_fields[parent] for owner in owners if parent in owner.model_fields]
    models = [model for field in fields for model in models_in(field.annotation)]
    having = [model.model_fields for model in models if name in model.model_fields]
    return [str(fields["kind"].default) for fields in having if "kind" in fields]


def every_path(root: type[BaseModel], prefix: str = "", depth: int = 3) -> Iterator[str]:
    """Dotted paths of all settings below a model, nearest first within one branch."""
    for name, field in root.model_fields.items():
        dotted = f"{prefix}{name}"
        yield dotted
        if depth > 0:
            for model in models_in(field.annotation):
                yield from every_path(model, f"{dotted}.", depth - 1)


def models_in(annotation: Any) -> list[type[BaseModel]]:  # noqa: ANN401 - any type expression
    """All pydantic models that a type expression mentions, in order."""
    if get_origin(annotation) is Annotated:
        return models_in(get_args(annotation)[0])
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        # A model that contains its own union knows its fields only once that union is complete.
        annotation.model_rebuild()
        return [annotation]
    if get_origin(annotation) in (Union, types.UnionType, list, tuple, dict, Sequence, Mapping):
        return [model for part in get_args(annotation) for model in models_in(part)]
    return []


def owners_of(root: type[BaseModel], raw: Tree, path: Path) -> list[type[BaseModel]]:
    """The models that may sit at a path; the `kind` written there narrows them to one."""
    owners: list[type[BaseModel]] = [root]
    for depth, part in enumerate(path):
        if isinstance(part, int):
            owners = _of_kind(owners, _at(raw, path[: depth + 1]))
            continue
        fields = [owner.model_fields[part] for owner in owners if part in owner.model_fields]
        inside = [model for field in fields for model in models_in(field.annotation)]
        owners = _of_kind(inside, _at(raw, path[: depth + 1])) if fields else owners
    return owners


def real_path(loc: Path, raw: Tree) -> tuple[Path, str | None]:
    """A pydantic location without the names of union members, and the member it ended in."""
    path: list[str | int] = []
    owner: str | None = None
    here: Any = raw
    for position, part in enumerate(loc):
        last = position == len(loc) - 1
        if isinstance(here, Mapping) and part in here:
            path.append(part)
            here = here[part]
        elif isinstance(here, Mapping) and part == here.get("kind"):
            owner = str(part)
        elif isinstance(here, Sequence) and not isinstance(here, str) and isinstance(part, int):
            path.append(part)
            here = here[part] if part < len(here) else None
        elif last and isinstance(here, Mapping) and not _is_a_type_label(part):
            path.append(part)
    return tuple(path), owner


def _is_a_type_label(part: str | int) -> bool:
    text = str(part)
    return text != text.lower() or "[" in text or text.startswith(_PARTS_OF_A_CHOICE)


def _of_kind(models: list[type[BaseModel]], value: object) -> list[type[BaseModel]]:
    kind = value.get("kind") if isinstance(value, Mapping) else None
    named = [model for model in models if kind is not None and kind in kinds_of(model)]
    return named or models


def kinds_of(model: type[BaseModel]) -> tuple[str, ...]:
    """What `kind` may be for this model; nothing where it has no such setting."""
    field = model.model_fields.get("kind")
    if field is None or get_origin(field.annotation) is not Literal:
        return ()
    return get_args(field.annotation)


def _at(raw: Any, path: Path) -> Any:  # noqa: ANN401 - a value of a YAML file
    for part in path:
        if isinstance(raw, Mapping):
            raw = raw.get(part)
        elif isinstance(raw, Sequence) and not isinstance(raw, str) and isinstance(part, int):
            raw = raw[part] if part < len(raw) else None
        else:
            return None
    return raw


def _name_of(value: object, path: Path) -> str:
    if isinstance(value, Mapping) and value.get("kind"):
        return str(value["kind"])
    names = [part for part in path if isinstance(part, str)]
    return names[-1] if names else "a recipe"


def _unknown_kind(dotted: str, problem: Mapping[str, Any], owner: str | None) -> str:
    expected = problem["ctx"].get("expected_tags")
    where = f"{dotted}.kind" if dotted else owner or "kind"
    if expected is None:
        value = problem["input"]
        if isinstance(value, Mapping):
            return f"{where} is missing; it must be given. See `tutelage list` for the kinds."
        return f"{dotted} is {_shown(value)}; it must be a mapping of settings with a kind."
    kinds = [kind.strip().strip("'") for kind in str(expected).split(",")]
    tag = str(problem["ctx"]["tag"])
    near = difflib.get_close_matches(tag, kinds, n=1, cutoff=0.5)
    advice = f" Did you mean {near[0]}?" if near else " See `tutelage list`."
    return f"{where} is {tag!r}; it must be one of {', '.join(kinds)}.{advice}"


def _own_words(dotted: str, text: str, owners: list[type[BaseModel]]) -> str:
    """A complaint that one of our validators wrote, with the whole path of what it begins with."""
    text = text.removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if not dotted or text.startswith(dotted):
        return text
    first = text.split(maxsplit=1)[0]
    is_setting = any(first in owner.model_fields for owner in owners)
    return f"{dotted}.{text}" if is_setting else f"{dotted}: {text}"


def _allowed(problem: Mapping[str, Any]) -> str:
    kind = str(problem["type"])
    if kind in _ALLOWED:
        context: Mapping[str, Any] = problem.get("ctx", {})
        plain = {k: f"{v:g}" if isinstance(v, float) else v for k, v in context.items()}
        return _ALLOWED[kind].format(**plain)
    for start, words in _ALLOWED_BY_START.items():
        if kind.startswith(start):
            return words
    text = str(problem["msg"])
    return text[:1].lower() + text[1:]


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."
