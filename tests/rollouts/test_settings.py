"""What cannot be meant cannot be written."""

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from tutelage.rollouts import RolloutSettings, WritingSettings

ADAPTER: TypeAdapter[Any] = TypeAdapter(RolloutSettings)


def made(**settings: Any) -> Any:
    return ADAPTER.validate_python({"data": "rows.jsonl", **settings})


@pytest.mark.parametrize("kind", ["dataset", "student", "teacher", "mixed", "replay"])
def test_every_kind_needs_its_data_alone(kind: str) -> None:
    assert made(kind=kind).kind == kind


def test_the_engine_is_told_what_the_settings_say() -> None:
    settings = made(
        kind="student", max_completion_tokens=7, temperature=0.5, top_p=0.9, top_k=4, batch_rows=3
    )
    assert isinstance(settings, WritingSettings)
    assert settings.sampling.model_dump() == {
        "max_completion_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 4,
        "batch_rows": 3,
    }


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"kind": "student", "temperature": 0, "top_p": 0.9}, "always takes the likeliest"),
        ({"kind": "student", "temperature": 0, "top_k": 5}, "always takes the likeliest"),
        ({"kind": "student", "student_share": 0.5}, "Extra inputs"),
        ({"kind": "dataset", "temperature": 1}, "Extra inputs"),
        ({"kind": "mixed", "student_share": 1.5}, "less than or equal to 1"),
        ({"kind": "mixed", "otherwise": "replay"}, "'dataset' or 'teacher'"),
        ({"kind": "replay", "fresh_share": 0}, "greater than 0"),
        ({"kind": "replay", "fresh_share": 1}, "nothing kept would ever be trained on"),
        ({"kind": "replay", "buffer_rows": 0}, "greater than 0"),
        ({"kind": "student", "temperature": -1}, "greater than or equal to 0"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        made(**settings)


def test_imitkd_and_distillm_can_be_written() -> None:
    made(kind="replay", fresh_share=1, train_on="buffer")
    made(kind="replay", fresh_share=1, final_fresh_share=0)


def test_an_engine_is_one_of_four() -> None:
    assert made(kind="student").engine == "auto"
    assert made(kind="teacher", engine="slots").engine == "slots"
    assert made(kind="student", engine="vllm").vllm is None
    with pytest.raises(ValidationError, match="'auto', 'slots', 'hf' or 'vllm'"):
        made(kind="student", engine="sglang")


SERVER = {"mode": "server", "url": "http://127.0.0.1:8000"}


@pytest.mark.parametrize("vllm", [{}, SERVER, {"arguments": ["--seed", "1"], "sync_every": 3}])
def test_vllm_is_told_where_it_is_by_settings_of_one_mode(vllm: dict[str, Any]) -> None:
    for kind in ("student", "mixed", "replay"):
        settings = made(kind=kind, engine="vllm", vllm=vllm)
        # What a run writes out in full can be read again.
        assert made(**settings.model_dump(mode="json")) == settings


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"vllm": {}}, "rollouts.vllm is given and rollouts.engine is auto; it must be null"),
        ({"engine": "vllm", "vllm": {"mode": "server"}}, "url is missing, and mode is server"),
        ({"engine": "vllm", "vllm": {"url": "http://x"}}, "url is http://x, and mode is colocate"),
        ({"engine": "vllm", "vllm": {**SERVER, "python": "p"}}, "python is p, and mode is server"),
        (
            {"engine": "vllm", "vllm": {**SERVER, "cache_gigabytes": 3}},
            "cache_gigabytes is 3.0, and mode is server",
        ),
        ({"engine": "vllm", "vllm": {"sync_every": 0}}, "greater than 0"),
        ({"kind": "teacher", "engine": "vllm"}, "rollouts.kind is teacher, but vLLM is given"),
        (
            {"kind": "mixed", "otherwise": "teacher", "engine": "vllm"},
            "rollouts.otherwise is teacher, but vLLM is given",
        ),
    ],
)
def test_settings_of_vllm_that_would_be_ignored_are_refused(
    settings: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValidationError, match=complaint):
        made(**{"kind": "student", **settings})
