"""YAML, overrides, and what is said about settings that are wrong, on a small tree of its own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge, Gt, Lt
from pydantic import Field, ValidationError, model_validator

from tutelage.core.errors import ConfigError
from tutelage.core.settings import Settings
from tutelage.recipes.tree import complaints, merged, read_recipe
from tutelage.recipes.tree.reading import overridden, parse


class Gentle(Settings):
    kind: Literal["gentle"] = "gentle"
    temperature: Annotated[float, Gt(0)] = 1.0
    alpha: Annotated[float, Ge(0)] | Literal["auto"] = 0.5
    pair: tuple[Literal["left", "right"], Literal["left", "right"]] | None = None


class Harsh(Settings):
    kind: Literal["harsh"] = "harsh"
    share: Annotated[float, Ge(0), Lt(1)] = 0.1


class Several(Settings):
    kind: Literal["several"] = "several"
    terms: list["Part"] = Field(min_length=1)


Part = Annotated[Gentle | Harsh | Several, Field(discriminator="kind")]


class Steps(Settings):
    num_steps: Annotated[int, Gt(0)] = 10
    rate: float = 0.1
    careful: bool = False

    @model_validator(mode="after")
    def _sane(self) -> "Steps":
        if self.careful and self.rate > 1:
            raise ValueError("training.rate is above 1 while careful; lower it.")
        return self


class Whole(Settings):
    part: Part
    training: Steps = Steps()
    named: Mapping[str, float] = Field(default_factory=dict)


def said(tree: Mapping[str, Any]) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        Whole.model_validate(tree)
    return complaints(caught.value, Whole, tree)


GENTLE = {"kind": "gentle"}


@pytest.mark.parametrize(
    ("tree", "line"),
    [
        (
            {"part": {"kind": "gentle", "temprature": 2}},
            "part.temprature is not a setting of gentle. Did you mean temperature?",
        ),
        (
            {"part": GENTLE, "training": {"num_stps": 2}},
            "training.num_stps is not a setting of training. Did you mean num_steps?",
        ),
        (
            {"part": GENTLE, "num_steps": 2},
            "num_steps is not a setting of a recipe. Did you mean training.num_steps?",
        ),
        (
            {"part": GENTLE, "zzz": 2},
            "zzz is not a setting of a recipe. Its settings are: part, training, named.",
        ),
        (
            {"part": {"kind": "gentl"}},
            "part.kind is 'gentl'; it must be one of gentle, harsh, several. Did you mean gentle?",
        ),
        (
            {"part": {"temperature": 1}},
            "part.kind is missing; it must be given. See `tutelage list` for the kinds.",
        ),
        ({}, "part is missing; it must be given. Add it to the recipe."),
        (
            {"part": GENTLE, "training": {"num_steps": -3}},
            "training.num_steps is -3; it must be greater than 0.",
        ),
        (
            {"part": GENTLE, "training": {"num_steps": "many"}},
            "training.num_steps is 'many'; it must be a whole number.",
        ),
        (
            {"part": GENTLE, "training": {"careful": "perhaps"}},
            "training.careful is 'perhaps'; it must be true or false.",
        ),
        (
            {"part": GENTLE, "training": {"rate": float("nan")}},
            "training.rate is nan; it must be a finite number.",
        ),
        (
            {"part": GENTLE, "training": {"rate": 2, "careful": True}},
            "training.rate is above 1 while careful; lower it.",
        ),
        (
            {"part": GENTLE, "training": 5},
            "training is 5; it must be a mapping of settings.",
        ),
        (
            {"part": {"kind": "gentle", "alpha": "quick"}},
            "part.alpha is 'quick'; it must be a number or 'auto'.",
        ),
        (
            {"part": {"kind": "gentle", "pair": ["left", "up"]}},
            "part.pair.1 is 'up'; it must be 'left' or 'right'.",
        ),
        (
            {"part": {"kind": "several", "terms": [{"kind": "harsh", "shares": 0.2}]}},
            "part.terms.0.shares is not a setting of harsh. Did you mean share?",
        ),
        (
            {"part": {"kind": "several", "terms": [{"kind": "harsh", "share": 1}]}},
            "part.terms.0.share is 1; it must be less than 1.",
        ),
        (
            {"part": GENTLE, "named": {"a": "b"}},
            "named.a is 'b'; it must be a number.",
        ),
    ],
)
def test_each_mistake_is_one_line_that_begins_with_its_dotted_path(
    tree: dict[str, Any], line: str
) -> None:
    assert said(tree) == [line]


def test_several_mistakes_are_several_lines() -> None:
    tree = {"part": {"kind": "harsh", "shar": 1}, "training": {"num_steps": 0, "rat": 1}}
    lines = said(tree)
    assert len(lines) == 3
    assert {line.split()[0] for line in lines} == {
        "part.shar",
        "training.num_steps",
        "training.rat",
    }


def test_scientific_notation_is_a_number() -> None:
    assert parse("a: 1e-5\nb: 3E4\nc: 1e5x", "here") == {"a": 1e-5, "b": 3e4, "c": "1e5x"}


def test_a_setting_given_twice_is_refused_with_its_line() -> None:
    with pytest.raises(ConfigError, match=r"here, line 3, column 1: seed is given twice"):
        parse("seed: 1\nname: x\nseed: 2\n", "here")


def test_broken_yaml_names_the_file_and_the_line() -> None:
    with pytest.raises(ConfigError, match=r"run\.yaml, line 2, column \d+: "):
        parse("a: [1, 2\nb: 3\n", "run.yaml")


def test_a_file_that_is_no_mapping_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"run\.yaml is a list; it must be a mapping"):
        parse("- a\n- b\n", "run.yaml")


def test_overrides_are_yaml_values_at_dotted_paths() -> None:
    tree: dict[str, Any] = {"a": {"b": [{"c": 1}, 2]}, "d": None}
    tree = overridden(tree, "a.b.0.c=2.5")
    tree = overridden(tree, "d.e=[x, y]")
    tree = overridden(tree, "f=")
    assert tree == {"a": {"b": [{"c": 2.5}, 2]}, "d": {"e": ["x", "y"]}, "f": None}


def test_an_override_keeps_the_tree_it_was_given_as_it_was() -> None:
    tree = {"a": {"b": 1}}
    overridden(tree, "a.b=2")
    assert tree == {"a": {"b": 1}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("temperature", "'temperature' is not an override; it must be PATH=VALUE"),
        ("=3", "'=3' is not an override"),
        ("a..b=3", "is not an override"),
        ("seed.x=3", "seed is 1, so seed.x cannot be set"),
        ("seed=[1", "seed is given as '\\[1', which is no YAML value"),
    ],
)
def test_an_override_that_cannot_be_put_in_says_why(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        overridden({"seed": 1}, text)


def test_another_kind_replaces_the_whole_and_the_same_kind_adds() -> None:
    below = {"part": {"kind": "gentle", "temperature": 2}, "training": {"rate": 1}}
    assert merged(below, {"part": {"kind": "harsh"}})["part"] == {"kind": "harsh"}
    assert merged(below, {"part": {"kind": "gentle", "alpha": 1}})["part"] == {
        "kind": "gentle",
        "temperature": 2,
        "alpha": 1,
    }
    assert merged(below, {"training": {"careful": True}})["training"] == {
        "rate": 1,
        "careful": True,
    }


def test_a_recipe_starts_from_the_one_that_base_names(tmp_path: Path) -> None:
    (tmp_path / "below.yaml").write_text("seed: 1\ntraining: {num_steps: 3}\n")
    (tmp_path / "above.yaml").write_text("base: below.yaml\ntraining: {rate: 2}\n")
    tree = read_recipe(str(tmp_path / "above.yaml"), ["seed=7"])
    assert tree == {"seed": 7, "training": {"num_steps": 3, "rate": 2}, "name": "above"}


def test_a_recipe_that_leads_back_to_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "round.yaml").write_text("base: round.yaml\n")
    with pytest.raises(ConfigError, match="lead back to itself"):
        read_recipe(str(tmp_path / "round.yaml"))


def test_a_recipe_that_is_not_there_is_refused_with_the_nearest_preset(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'dem' is not a preset and no such file exists"):
        read_recipe("dem")
    with pytest.raises(ConfigError, match="is a folder"):
        read_recipe(str(tmp_path))


def test_a_setting_of_another_kind_says_of_which() -> None:
    assert said({"part": {"kind": "harsh", "temperature": 2}}) == [
        "part.temperature is not a setting of harsh, but of gentle. Remove it, or change part.kind."
    ]
    inside = {"kind": "several", "terms": [{"kind": "gentle", "share": 0.5}]}
    assert said({"part": inside})[0].startswith("part.terms.0.share is not a setting of gentle")
