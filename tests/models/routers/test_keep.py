import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.tiny_models import byte_tokenizer
from tests.tiny_moe import FAMILIES, ragged_view, some_biases, tiny_moe
from tutelage.core.errors import ModelError
from tutelage.models import CausalLM, load_config, load_model, save_model
from tutelage.models.routers import (
    RouterTap,
    biases_of,
    fold_biases,
    install_biased_routers,
    routers_of,
    set_biases,
)

every_family = pytest.mark.parametrize("family", FAMILIES)


def biased(family: str = "mixtral", scale: float = 1.0) -> CausalLM:
    lm = tiny_moe(family)
    install_biased_routers(lm)
    set_biases(lm, some_biases(scale=scale))
    return lm


@every_family
def test_a_bias_of_nothing_leaves_a_stock_folder(family: str, tmp_path: Path) -> None:
    lm = biased(family, scale=0.0)
    save_model(lm, byte_tokenizer(), tmp_path / "m")
    written = json.loads((tmp_path / "m" / "config.json").read_text(encoding="utf-8"))
    assert written["model_type"] == family
    assert not list((tmp_path / "m").glob("*.py"))
    model, told = AutoModelForCausalLM.from_pretrained(tmp_path / "m", output_loading_info=True)
    assert not told["unexpected_keys"]
    assert not told["missing_keys"]
    ids = ragged_view((7,)).input_ids[None]
    torch.testing.assert_close(model(ids).logits, lm.model(ids).logits, rtol=1e-5, atol=1e-6)


@every_family
@pytest.mark.parametrize("takes_part_in", ["gates", "choice"])
def test_our_own_loader_brings_a_bias_back_to_the_bit(
    family: str, takes_part_in: str, tmp_path: Path
) -> None:
    lm = biased(family)
    install_biased_routers(lm, takes_part_in=takes_part_in)
    save_model(lm, byte_tokenizer(), tmp_path / "m")
    again = load_model(str(tmp_path / "m")).lm
    assert biases_of(again).equal(some_biases())
    assert [r.takes_part_in for r in routers_of(again)] == [takes_part_in] * 2
    assert again.config.model_type == family == load_config(str(tmp_path / "m")).model_type
    assert type(again.model) is type(lm.model)
    assert again.hidden(ragged_view()).equal(lm.hidden(ragged_view()))
    # And once more, from what was loaded.
    save_model(again, byte_tokenizer(), tmp_path / "again")
    assert biases_of(load_model(str(tmp_path / "again")).lm).equal(some_biases())


def test_a_folder_with_a_bias_loads_in_half_precision_with_the_bias_in_full(tmp_path: Path) -> None:
    save_model(biased(), byte_tokenizer(), tmp_path / "m")
    again = load_model(str(tmp_path / "m"), dtype=torch.bfloat16).lm
    assert again.dtype == torch.bfloat16
    assert biases_of(again).equal(some_biases())


_ELSEWHERE = """
import sys, torch
from transformers import AutoModelForCausalLM
assert not any(name.startswith("tutelage") for name in sys.modules)
for folder in sys.argv[1:]:
    try:
        AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    except ValueError as error:
        assert "trust_remote_code" in str(error), error
    else:
        raise SystemExit("loaded without its code, and so without its biases")
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    ids = torch.arange(3, 40)[None]
    torch.testing.assert_close(model(ids).logits, torch.load(folder + ".pt", weights_only=True))
    assert model.generate(ids, max_new_tokens=4, do_sample=False).shape == (1, 41)
"""


@pytest.mark.slow
def test_stock_transformers_reads_a_bias_with_the_folders_code_and_refuses_without(
    tmp_path: Path,
) -> None:
    folders: list[str] = []
    for family in FAMILIES:
        for takes_part_in in ("gates", "choice"):
            lm, folder = biased(family), tmp_path / f"{family}-{takes_part_in}"
            install_biased_routers(lm, takes_part_in=takes_part_in)
            save_model(lm, byte_tokenizer(), folder)
            with torch.no_grad():
                torch.save(lm.model(torch.arange(3, 40)[None]).logits, f"{folder}.pt")
            folders.append(str(folder))
    environment = {"HF_HOME": str(tmp_path / "hf"), "PATH": "", "OMP_NUM_THREADS": "1"}
    outside = [sys.executable, "-c", _ELSEWHERE, *folders]
    done = subprocess.run(outside, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@every_family
def test_a_fold_does_the_work_of_the_bias_where_hidden_states_allow_it(family: str) -> None:
    lm = biased(family)
    # Give every hidden state something in common, as the norms of trained models do.
    for layer in lm.model.model.layers:
        layer.mlp.register_forward_pre_hook(lambda _, given: (given[0] + 2.0,))
    view = ragged_view((30, 30))
    folded, report = fold_biases(lm, [view])
    assert not biases_of(folded).any()
    assert biases_of(lm).equal(some_biases())
    assert report.num_tokens == 30
    for distance, without in zip(report.distance, report.without, strict=True):
        assert distance < 0.25 * without
    with RouterTap(folded) as tap:
        folded.hidden(view)
    got = tap.of(view).probabilities[0]
    with RouterTap(lm) as tap:
        lm.hidden(view)
    wanted = tap.of(view).probabilities[0]
    assert float((got - wanted).norm(dim=-1).mean()) < 0.3 * report.without[0]
    assert "folded" in str(report)


def test_a_fold_leaves_the_model_it_came_from_alone(tmp_path: Path) -> None:
    lm = biased()
    before = {n: t.clone() for n, t in lm.state_dict().items()}
    folded, _ = fold_biases(lm, [ragged_view()])
    assert all(t.equal(before[n]) for n, t in lm.state_dict().items())
    save_model(folded, byte_tokenizer(), tmp_path / "m")
    assert not list((tmp_path / "m").glob("*.py"))


@pytest.mark.parametrize(("takes_part_in", "view"), [("choice", (5,)), ("gates", ())])
def test_what_cannot_be_folded_is_refused(takes_part_in: str, view: tuple[int, ...]) -> None:
    lm = biased()
    install_biased_routers(lm, takes_part_in=takes_part_in)
    views = [ragged_view(view)] if view else []
    with pytest.raises(ModelError, match=r"fold"):
        fold_biases(lm, views)
