import logging
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cosine_similarity
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.tiny_models import byte_tokenizer, tiny_gemma3, tiny_llama, tiny_qwen2
from tutelage.core.errors import ConfigError, DataError, ModelError
from tutelage.core.records import TokenBatch
from tutelage.models import CausalLM, layers_of, load_model, save_model
from tutelage.students import block_influence, choose_layers, layers_by_influence, prune_layers
from tutelage.text import Formatter, collate

TOKENIZER = byte_tokenizer()
KINDS = [*["sliding_attention"] * 3, *["full_attention"] * 2]


def calibration() -> list[TokenBatch]:
    texts = ("It was a dark night.", "Call me.", "In the beginning there was a long row of words.")
    formatter = Formatter(TOKENIZER)
    rows = [formatter.rollout({"text": text}, "calibration") for text in texts]
    return [collate(rows[:2]), collate(rows[2:])]


def five_layers() -> list[PreTrainedModel]:
    return [
        tiny_llama(num_hidden_layers=5),
        tiny_qwen2(
            num_hidden_layers=5, use_sliding_window=True, sliding_window=8, max_window_layers=2
        ),
        tiny_gemma3(num_hidden_layers=5, layer_types=KINDS),
    ]


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_influence_is_one_minus_the_mean_cosine_over_all_tokens(layout: str) -> None:
    lm, batches = CausalLM(tiny_llama(num_hidden_layers=3), layout=layout), calibration()
    cosines: list[list[float]] = [[], [], []]
    for batch in batches:
        for row in batch.student.input_ids.split(batch.student.row_starts.diff().tolist()):
            seen = lm.model(row[None], output_hidden_states=True).hidden_states
            # The last entry is behind the final norm: the last layer's own output is asked for.
            last: list[torch.Tensor] = []
            handle = lm.model.model.layers[-1].register_forward_hook(
                lambda _m, _a, out, kept=last: kept.append(out)
            )
            lm.model(row[None])
            handle.remove()
            states = [*seen[:-1], *last]
            for at in range(3):
                cosines[at] += cosine_similarity(states[at], states[at + 1], dim=-1)[0].tolist()
    expected = [1 - sum(of) / len(of) for of in cosines]
    assert block_influence(lm, batches) == pytest.approx(expected, abs=1e-5)


def test_the_log_names_the_layers_that_influence_chose(caplog: pytest.LogCaptureFixture) -> None:
    lm, batches = CausalLM(tiny_llama(num_hidden_layers=5)), calibration()
    with caplog.at_level(logging.INFO, "tutelage"):
        chosen = layers_by_influence(lm, batches, keep=3)
        everything = layers_by_influence(lm, [], keep=5)
    scores = block_influence(lm, batches)
    assert chosen == choose_layers("influence", keep=3, num_layers=5, influence=scores)
    assert everything == [0, 1, 2, 3, 4]
    names = ", ".join(map(str, chosen))
    assert caplog.messages == [f"Layers {names} of 5 stay: influence chose them."]


def test_measuring_leaves_no_trace() -> None:
    lm = CausalLM(tiny_llama()).train()
    block_influence(lm, calibration())
    assert lm.training
    assert lm.model.training
    assert not any(layer._forward_hooks for layer in layers_of(lm.model))
    assert all(parameter.grad is None for parameter in lm.parameters())


def test_a_layer_that_does_nothing_has_no_influence() -> None:
    model = tiny_llama(num_hidden_layers=3)
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight.zero_()
        model.model.layers[1].mlp.down_proj.weight.zero_()
    lm = CausalLM(model)
    influence = block_influence(lm, calibration())
    assert influence[1] == pytest.approx(0, abs=1e-6)
    assert min(influence[0], influence[2]) > 1e-3
    keep = choose_layers("influence", keep=2, num_layers=3, influence=influence)
    assert keep == [0, 2]
    view = calibration()[0].student
    torch.testing.assert_close(prune_layers(lm, keep).hidden(view), lm.hidden(view))


def test_the_lowest_influence_is_dropped_first_and_order_is_kept() -> None:
    influence = [0.5, 0.1, 0.2, 0.1, 0.4]

    def chosen(keep: int) -> list[int]:
        return choose_layers("influence", keep=keep, num_layers=5, influence=influence)

    assert [chosen(keep) for keep in (4, 3, 2, 1)] == [[0, 1, 2, 4], [0, 2, 4], [0, 4], [0]]
    assert chosen(5) == [0, 1, 2, 3, 4]


def test_uniform_keeps_both_ends() -> None:
    assert choose_layers("uniform", keep=4, num_layers=10) == [0, 3, 6, 9]
    assert choose_layers("uniform", keep=10, num_layers=10) == list(range(10))
    for keep in range(2, 31):
        chosen = choose_layers("uniform", keep=keep, num_layers=30)
        assert (chosen[0], chosen[-1], len(set(chosen))) == (0, 29, keep)


def test_layers_that_cannot_be_kept_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"student\.keep_layers is 31; it must be from 1 to 30"):
        choose_layers("influence", keep=31, num_layers=30)
    for wrong in ([0, 1], [0, 1, 30], [2, 1, 0], [0, 1, 1], [-1, 0, 1]):
        with pytest.raises(ConfigError, match=r"student\.choose is .* 3 different layers from 0"):
            choose_layers(wrong, keep=3, num_layers=30)
    assert choose_layers([0, 7, 29], keep=3, num_layers=30) == [0, 7, 29]


@pytest.mark.parametrize("model", five_layers(), ids=lambda model: model.config.model_type)
def test_a_pruned_model_computes_what_skipping_the_layers_computes(model: PreTrainedModel) -> None:
    lm, view = CausalLM(model), calibration()[0].student
    pruned = prune_layers(lm, [0, 3, 4]).hidden(view)
    for at in (1, 2):
        layers_of(model)[at].register_forward_hook(lambda _m, args, _out: args[0])
    assert torch.equal(pruned, lm.hidden(view))


@pytest.mark.parametrize("model", five_layers(), ids=lambda model: model.config.model_type)
def test_a_pruned_model_is_saved_and_generates_with_its_cache_as_it_is(
    model: PreTrainedModel, tmp_path: Path
) -> None:
    pruned = prune_layers(CausalLM(model), [0, 3, 4])
    folder = save_model(pruned, TOKENIZER, tmp_path / "student")
    plain = AutoModelForCausalLM.from_pretrained(folder)
    ours = load_model(str(folder)).lm.model
    prompt = torch.arange(40, 54)[None]
    mask = torch.ones_like(prompt)

    def answer(lm: PreTrainedModel, *, cache: bool) -> list[int]:
        asked = {"attention_mask": mask, "max_new_tokens": 20, "use_cache": cache}
        return lm.generate(prompt, do_sample=False, **asked)[0].tolist()

    expected = answer(pruned.model, cache=True)
    assert len(expected) > 20
    for lm in (pruned.model, plain, ours):
        for cache in (True, False):
            assert answer(lm, cache=cache) == expected
    for at in (1, 2):
        layers_of(model)[at].register_forward_hook(lambda _m, args, _out: args[0])
    torch.testing.assert_close(plain(prompt).logits, model(prompt).logits)


def test_what_the_config_says_layer_by_layer_is_cut_alike() -> None:
    lm = CausalLM(tiny_gemma3(num_hidden_layers=5, layer_types=KINDS))
    config = prune_layers(lm, [1, 2, 3]).config
    assert config.layer_types == KINDS[1:4]
    assert config.num_hidden_layers == 3
    assert lm.config.num_hidden_layers == 5


@pytest.mark.parametrize("tied", [True, False])
def test_a_pruned_model_shares_no_weight_with_the_one_it_was_cut_from(tied) -> None:
    lm = CausalLM(tiny_llama(num_hidden_layers=4, tie_word_embeddings=tied))
    before = {name: weight.clone() for name, weight in lm.state_dict().items()}
    pruned = prune_layers(lm, [0, 2])
    theirs = {weight.data_ptr() for weight in lm.state_dict().values()}
    assert theirs.isdisjoint(weight.data_ptr() for weight in pruned.state_dict().values())
    with torch.no_grad():
        for parameter in pruned.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(lm.state_dict()[name], weight) for name, weight in before.items())
    assert len(layers_of(lm.model)) == 4
    embedding, head = pruned.model.model.embed_tokens.weight, pruned.head.weight
    assert (embedding is head) == tied


def test_dropped_layers_are_never_copied() -> None:
    model = tiny_llama(num_hidden_layers=4)
    model.model.layers[1].__deepcopy__ = lambda _memo: pytest.fail("a dropped layer was copied")
    assert len(layers_of(prune_layers(CausalLM(model), [0, 3]).model)) == 2


def test_layers_that_depend_on_their_depth_cannot_be_dropped() -> None:
    from tests.models.test_causal_lm import model_of

    model = model_of("gpt2")
    assert len(layers_of(prune_layers(CausalLM(model), [1]).model)) == 1
    model.config.scale_attn_by_inverse_layer_idx = True
    with pytest.raises(ModelError, match=r"scale_attn_by_inverse_layer_idx is on; it must be off"):
        prune_layers(CausalLM(model), [1])


def test_influence_without_rows_is_refused() -> None:
    with pytest.raises(DataError, match=r"calibration rows are empty.*choose: uniform"):
        block_influence(CausalLM(tiny_llama()), [])
