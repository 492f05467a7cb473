"""The real SmolLM2 as eight experts: exact with all of them, and a folder anybody can load."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.real_models import real_teacher
from tests.students.test_real import PROMPT, batch
from tutelage.evaluation import evaluate_divergence
from tutelage.models import save_model
from tutelage.students import (
    UpcycledStudent,
    all_experts,
    counted,
    equal_gate,
    make_upcycled,
)
from tutelage.teachers import LiveTeacher

pytestmark = pytest.mark.real


@torch.no_grad()
def test_the_real_model_is_equal_to_its_experts_and_its_folder_generates(tmp_path: Path) -> None:
    loaded, rows = real_teacher(), [batch()]
    plan = UpcycledStudent(
        experts=8,
        active=6,
        split={"kind": "clustered", "max_iterations": 3, "poor_clusters": "ignore"},
    )
    made = make_upcycled(loaded.lm, plan, rows)
    assert made.lm.config.model_type == "mixtral"
    assert made.lm.config.intermediate_size == 192
    prompt = loaded.tokenizer(PROMPT, return_tensors="pt").input_ids
    expected = loaded.lm.model(prompt).logits
    with all_experts(made.lm, equal_gate(plan, made.shape)):
        found = made.lm.model(prompt).logits
    # Logits of 30 layers of float32, the largest about 40.
    assert float((found - expected).abs().max()) < 1e-5 * float(expected.abs().max())
    with counted(made.lm) as counts:
        report = evaluate_divergence(made.lm, LiveTeacher(loaded.lm), rows)
    assert 0.1 < report.forward_kl < 10
    assert (counts.sum(dim=1) == 6 * rows[0].num_tokens).all()
    folder = save_model(made.lm, loaded.tokenizer, tmp_path / "experts")
    plain = AutoModelForCausalLM.from_pretrained(folder)
    # Two kernels of attention, through 30 layers.
    torch.testing.assert_close(
        plain(prompt).logits, made.lm.model(prompt).logits, rtol=1e-4, atol=1e-3
    )
    asked = {"max_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(prompt)}
    written = [plain.generate(prompt, use_cache=cache, **asked).tolist() for cache in (True, False)]
    assert written[0] == written[1]
    # Half a gigabyte that pytest would keep for three sessions.
    shutil.rmtree(folder)


@torch.no_grad()
def test_a_fitted_router_starts_far_better_than_centroids() -> None:
    loaded, rows = real_teacher(), [batch()]
    found: dict[str, float] = {}
    for kind in ("centroids", "fitted"):
        plan = UpcycledStudent(experts=8, active=6, split={"kind": "random"}, router={"kind": kind})
        made = make_upcycled(loaded.lm, plan, rows)
        report = evaluate_divergence(made.lm, LiveTeacher(loaded.lm), rows)
        found[kind] = report.forward_kl
    assert found["fitted"] < 0.6 * found["centroids"]
