"""From a recipe to a cache to a run: equal to a live teacher, and honest about what is missing."""

import json
import multiprocessing
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import FAST
from tests.recipes.killing import Killer
from tests.tiny_models import VOCABULARY, byte_tokenizer, tiny_llama
from tutelage.core.errors import ConfigError, DataError, OutputError
from tutelage.models import CausalLM, save_model
from tutelage.recipes.caching.make import CacheMade, CachePlan, make_cache
from tutelage.recipes.check import contradictions
from tutelage.recipes.config import Recipe, load
from tutelage.recipes.doctor import examine
from tutelage.recipes.run import evaluate_folder, run_recipe


def tiny(folder: Path, name: str, *overrides: str) -> Recipe:
    return load("tiny", [*FAST, f"output={folder / name}", "baselines={}", *overrides])


def from_cache(folder: Path, name: str, *overrides: str, more: str = "") -> Recipe:
    teacher = f"teacher={{kind: cached, folder: {folder / 'cache'}{more}}}"
    return tiny(folder, name, teacher, *overrides)


def make(folder: Path, *overrides: str, **plan: Any) -> CacheMade:
    return make_cache(tiny(folder, "unused", *overrides), folder / "cache", CachePlan(**plan))


def weights(recipe: Recipe) -> bytes:
    return (run_recipe(recipe).student / "model.safetensors").read_bytes()


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def distilled(recipe: Recipe) -> Any:
    return next(r for r in run_recipe(recipe).summary["rows"] if r["name"] == "distilled")


@pytest.mark.parametrize("extra", [(), ("move=taid",), ("objective=jsd", "training.fused=false")])
def test_a_run_from_cached_hidden_states_ends_with_the_live_runs_weights(
    tmp_path: Path, extra: tuple[str, ...]
) -> None:
    make(tmp_path, *extra)
    assert weights(from_cache(tmp_path, "one", *extra)) == weights(tiny(tmp_path, "two", *extra))


def test_with_every_entry_kept_a_run_ends_where_the_live_one_does(tmp_path: Path) -> None:
    make(tmp_path, answer="top_k", num_entries=300, dtype="float32")
    live, cached = distilled(tiny(tmp_path, "two")), distilled(from_cache(tmp_path, "one"))
    assert cached["forward_kl"] == pytest.approx(live["forward_kl"], rel=1e-4)


@pytest.mark.parametrize("answer", ["top_k", "sampled"])
def test_part_of_the_vocabulary_teaches_too_and_is_measured_exactly(
    tmp_path: Path, answer: Any
) -> None:
    made = make(tmp_path, answer=answer, num_entries=20)
    summary = run_recipe(from_cache(tmp_path, "run")).summary["rows"]
    live = run_recipe(tiny(tmp_path, "live")).summary["rows"]
    rows, same = ({row["name"]: row for row in one} for one in (summary, live))
    assert rows["before"]["forward_kl"] == same["before"]["forward_kl"]
    assert rows["teacher"]["perplexity"] == same["teacher"]["perplexity"]
    assert rows["distilled"]["forward_kl"] < rows["before"]["forward_kl"]
    assert made.parts[0].bytes_per_token < (130 if answer == "top_k" else 120)


def test_the_demo_may_be_measured_again_from_the_cache(tmp_path: Path) -> None:
    make(tmp_path)
    outcome = run_recipe(from_cache(tmp_path, "run"))
    found = evaluate_folder(outcome.folder)["rows"][0]
    end = next(r for r in outcome.summary["rows"] if r["name"] == "distilled")
    assert found["forward_kl"] == pytest.approx(end["forward_kl"], rel=1e-5)


@pytest.mark.parametrize("padding", [0, 12])
@pytest.mark.parametrize("answer", ["hidden", "top_k", "sampled"])
def test_heads_padded_differently_agree_in_every_mode(
    tmp_path: Path, answer: Any, padding: int
) -> None:
    """Of one family, with 260 real entries in heads of 260 and more (pitfall B29)."""
    sizes = {"teacher": VOCABULARY + 8, "student": VOCABULARY + padding}
    for seed, (name, size) in enumerate(sizes.items()):
        lm = CausalLM(tiny_llama(seed, vocab_size=size))
        save_model(lm, byte_tokenizer(), tmp_path / name)
    pair = (f"student={tmp_path / 'student'}", f"teacher={tmp_path / 'teacher'}")
    # Steps on part of the vocabulary differ, the first loss of a whole top-k does not.
    one_step = ("training.num_steps=1", "training.save_every=null")
    make(tmp_path, *pair, answer=answer, num_entries=VOCABULARY, dtype="float32")
    live = run_recipe(tiny(tmp_path, "live", *pair, *one_step))
    cached = run_recipe(from_cache(tmp_path, "run", pair[0], *one_step))
    a, b = (_losses(run.folder) for run in (live, cached))
    if answer == "sampled":
        assert abs(a[0] - b[0]) < 0.2 * a[0]
    else:
        assert b[0] == pytest.approx(a[0], rel=1e-5)
    for name in ("forward_kl", "perplexity", "top1_agreement"):
        before = [run.summary["rows"][0][name] for run in (live, cached)]
        assert before[0] == before[1]


def _losses(folder: Path) -> list[float]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [one["loss"] for line in lines if "loss" in (one := json.loads(line))]


def test_making_it_again_changes_no_byte_and_asks_nobody(tmp_path: Path) -> None:
    make(tmp_path)
    before = files(tmp_path / "cache")
    assert [part.num_new_rows for part in make(tmp_path).parts] == [0, 0]
    assert files(tmp_path / "cache") == before


@pytest.mark.parametrize(
    ("overrides", "plan", "complaint"),
    [
        (("teacher.seed=1",), {}, r"teacher\.seed is 1; it must be 0.*weights is"),
        ((), {"answer": "top_k"}, r"answers\.answer is top_k; it must be hidden"),
        ((), {"dtype": "bfloat16"}, r"answers\.dtype is bfloat16; it must be float32"),
        (("rollouts.template_arguments={enable_thinking: true}",), {}, r"template is"),
    ],
)
def test_a_cache_of_other_answers_is_not_added_to(
    tmp_path: Path, overrides: tuple[str, ...], plan: dict[str, Any], complaint: str
) -> None:
    make(tmp_path)
    before = files(tmp_path / "cache")
    with pytest.raises(OutputError, match=complaint):
        make(tmp_path, *overrides, **plan)
    assert files(tmp_path / "cache") == before


def test_a_folder_of_other_things_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "thesis.tex").touch()
    with pytest.raises(OutputError, match=r"holds thesis\.tex, which no cache of ours wrote"):
        make(tmp_path)


def test_a_row_that_is_not_cached_is_named_before_the_first_step(tmp_path: Path) -> None:
    make(tmp_path, "rollouts.num_rows=20")
    with pytest.raises(DataError, match=r"of 92 training rows are not in the cache.*tiny\.jsonl"):
        run_recipe(from_cache(tmp_path, "run"))
    make(tmp_path)
    run_recipe(from_cache(tmp_path, "run"), overwrite=True)


def test_a_row_that_has_changed_is_called_stale(tmp_path: Path) -> None:
    rows = [{"prompt": f"{n} and", "completion": f"{n + 1}."} for n in range(12)]
    path = tmp_path / "rows.jsonl"

    def write() -> str:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return f"rollouts={{data: {path}}}"

    make(tmp_path, write())
    rows[3]["completion"] = "something else"
    with pytest.raises(DataError, match=r"1 of 8 training rows.*4 \(stale: it was cached with"):
        run_recipe(from_cache(tmp_path, "run", write()))


def test_another_template_or_tokenizer_is_refused_and_the_doctor_says_so(tmp_path: Path) -> None:
    make(tmp_path)
    other = from_cache(tmp_path, "run", "rollouts.template_arguments={enable_thinking: true}")
    with pytest.raises(DataError, match=r"The chat template is not that of the cache"):
        run_recipe(other)
    wrong = [f for f in examine(other) if f.verdict == "wrong"]
    assert [f.subject for f in wrong] == ["cache"]
    manifest = tmp_path / "cache" / "manifest.json"
    tree = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**tree, "tokenizer": "0" * 32}))
    with pytest.raises(DataError, match=r"The tokenizer is not that of the cache"):
        run_recipe(from_cache(tmp_path, "other"))
    manifest.write_text(json.dumps({**tree, "num_real": 250, "answers": {"answer": "top_k"}}))
    with pytest.raises(DataError, match=r"share 260 entries .* is over 250"):
        run_recipe(from_cache(tmp_path, "third"))


@pytest.mark.parametrize(
    ("plan", "overrides", "complaint"),
    [
        ({"answer": "top_k"}, ("objective=concrete_score",), "concrete_score on a top-k answer"),
        ({"answer": "top_k"}, ("objective=direct_logit",), "must be a divergence"),
        ({"answer": "sampled"}, ("objective=reverse_kl",), "must be forward_kl or cross_entropy"),
        ({"answer": "top_k"}, ("objective={kind: jsd, temperature: 2}",), "it must be 1 for"),
        ({"answer": "top_k"}, ("move=taid",), "move.kind is taid, and top_k answers are part"),
        ({}, ("rollouts.kind=student",), "rollouts.kind is student, and what is written"),
        ({}, ("evaluation.written_rows=2",), "evaluation.written_rows is 2"),
    ],
)
def test_what_a_cache_cannot_do_is_said_before_anything_loads(
    tmp_path: Path, plan: dict[str, Any], overrides: tuple[str, ...], complaint: str
) -> None:
    make(tmp_path, **plan)
    lines = list(contradictions(from_cache(tmp_path, "run", *overrides)))
    assert any(complaint in line for line in lines), lines
    # Nor is it cached for: but for a temperature, which the answers then are taken at.
    if "temperature" not in overrides[0]:
        with pytest.raises(ConfigError, match=complaint.split(",", maxsplit=1)[0]):
            make_cache(tiny(tmp_path, "x", *overrides), tmp_path / "y", CachePlan(**plan))


def test_a_setting_that_a_cache_would_ignore_is_refused(tmp_path: Path) -> None:
    make(tmp_path)
    (line,) = contradictions(from_cache(tmp_path, "run", more=", rest: renormalised"))
    assert line.startswith("teacher.rest is renormalised, and the cache holds hidden answers")
    missing = tiny(tmp_path, "run", f"teacher={{kind: cached, folder: {tmp_path / 'no'}}}")
    (line,) = contradictions(missing)
    assert "holds no manifest.json" in line


@pytest.mark.parametrize("answer", ["top_k", "sampled"])
def test_answers_are_taken_at_the_objectives_temperature(tmp_path: Path, answer: Any) -> None:
    warm = "objective={kind: forward_kl, temperature: 2.0, scale_by_t2: true}"
    make(tmp_path, warm, answer=answer, num_entries=VOCABULARY, dtype="float32")
    recipe = from_cache(tmp_path, "run", warm)
    assert list(contradictions(recipe)) == []
    got, want = distilled(recipe), distilled(tiny(tmp_path, "live", warm))
    tolerance = 1e-4 if answer == "top_k" else 0.5
    assert got["forward_kl"] == pytest.approx(want["forward_kl"], rel=tolerance)


def test_the_doctor_reads_every_byte_and_asks_the_teacher_again(tmp_path: Path) -> None:
    for answer in ("hidden", "top_k", "sampled"):
        folder = tmp_path / answer
        folder.mkdir()
        make(folder, answer=answer)
        found = [f for f in examine(from_cache(folder, "run")) if f.subject == "cache"]
        assert [f.verdict for f in found] == ["fine"] * 4
        assert "its teacher says the same on 3 rows" in found[-1].text
    shard = tmp_path / "hidden" / "cache" / "training" / "shard-00000.safetensors"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(bytes(data))
    wrong = [f for f in examine(from_cache(tmp_path / "hidden", "run")) if f.verdict == "wrong"]
    assert "shard-00000.safetensors is damaged" in wrong[0].text


def test_a_run_does_not_go_on_with_the_answers_of_another_teacher(tmp_path: Path) -> None:
    make(tmp_path)
    run_recipe(from_cache(tmp_path, "run", "keep_checkpoints=true"))
    (tmp_path / "cache").rename(tmp_path / "old")
    make(tmp_path, "teacher.seed=5")
    (tmp_path / "run" / "measured.json").write_text("{}")
    with pytest.raises(OSError, match=r"teacher\.cache is .*'seed': 5"):
        run_recipe(from_cache(tmp_path, "run", "keep_checkpoints=true"), resume=True)


def make_and_die(folder: str, at: int) -> None:
    plan = CachePlan(answer="sampled", tokens_per_shard=60)
    make_cache(
        tiny(Path(folder), "unused"),
        Path(folder) / "cache",
        plan,
        narrator=Killer("Caching training rows", at),
    )


@pytest.mark.parametrize("at", [1, 40, 91])
def test_killed_it_goes_on_to_the_very_same_cache(tmp_path: Path, at: int) -> None:
    """SIGKILL in the middle of the rows, on a real process; then the same work again."""
    process = multiprocessing.get_context("spawn").Process(
        target=make_and_die, args=(str(tmp_path / "killed"), at)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    for name in ("killed", "whole"):
        make(tmp_path / name, answer="sampled", tokens_per_shard=60)
    left, whole = (files(tmp_path / name / "cache") for name in ("killed", "whole"))
    assert len([name for name in whole if "shard-" in name]) > 10
    assert left == whole
