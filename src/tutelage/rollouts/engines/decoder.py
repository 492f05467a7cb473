"""The forward pass of Llama-shaped models for writing: prompts and single tokens in one go.

Its weights are the live model's, taken once and kept for one call only, for a student's weights
move. Queries, keys and values are one matrix, gate and up another. Norms, activation and rotary
angles are the model's own modules. The cache has a place for every token a slot can hold, so it
never grows; a row's attention reads the filled part of its own slot and nothing else, and a
key-value head serves its query heads without being copied.
"""

# pyright: basic

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from tutelage.models import CausalLM, acting_weights, anatomy_of, layers_of
from tutelage.models.anatomy import backbone_of
from tutelage.rollouts.engines.matrices import Matrix, joined


@final
@dataclass(frozen=True, kw_only=True)
class Pass:
    """What one forward pass reads. Prompts come first, then single tokens."""

    prompts: Sequence[tuple[int, Sequence[int]]] = ()
    """A slot and all tokens to fill it with from its beginning."""
    copies: Sequence[tuple[int, int, int]] = ()
    """From a slot, to a slot, how many tokens: done when the prompts are in, before the tokens."""
    tokens: Sequence[tuple[int, int, int]] = ()
    """A slot, the place in it, and the token that goes there."""


@final
@dataclass(frozen=True, kw_only=True)
class _Layer:
    input_norm: nn.Module
    qkv: Matrix
    query_norm: nn.Module | None
    key_norm: nn.Module | None
    scaling: float
    output: Matrix
    mlp_norm: nn.Module
    gate_up: Matrix
    activation: Callable[[Tensor], Tensor]
    down: Matrix


@final
class Decoder:
    """A model's forward pass, with the keys and values of its slots.

    Args:
        room: tokens a slot can hold.
    """

    def __init__(self, weights: "Weights", *, num_slots: int, room: int) -> None:
        self._weights = weights
        device = weights.head.weight.device
        places = torch.arange(room, device=device)[None]
        cos, sin = weights.angles(weights.embedding(places * 0), position_ids=places)
        # The first half of the channels takes minus the second: the sign goes into the table.
        half = cos.shape[-1] // 2
        self._cos, self._sin = cos[0, :, None], sin[0, :, None].clone()
        self._sin[..., :half].neg_()
        self._half = half
        shape = (num_slots, weights.num_keys, room, 2 * half)
        self._cache = [
            tuple(torch.empty(shape, dtype=weights.dtype, device=device) for _ in range(2))
            for _ in weights.layers
        ]

    def __call__(self, given: Pass) -> Float[Tensor, "B V"]:
        """The scores behind each prompt and each single token, in their order."""
        w = self._weights
        plan = _Plan.of(given, self._cos.device)
        cos, sin = self._cos[plan.places], self._sin[plan.places]
        hidden = w.embedding(plan.ids)
        for layer, cache in zip(w.layers, self._cache, strict=True):
            qkv = layer.qkv(layer.input_norm(hidden))
            heads = self._turned(layer, qkv.unflatten(1, (-1, 2 * self._half)), cos, sin)
            attended = self._attended(layer, heads, cache, plan)
            if layer is w.layers[-1]:
                # Of a prompt, only the last token is asked what comes next.
                attended, hidden = attended[plan.last], hidden[plan.last]
            hidden = hidden + layer.output(attended)
            gate, up = layer.gate_up(layer.mlp_norm(hidden)).chunk(2, dim=-1)
            hidden = hidden + layer.down(layer.activation(gate) * up)
        return w.head(w.final_norm(hidden))

    def _turned(
        self,
        layer: _Layer,
        heads: Float[Tensor, "N H C"],
        cos: Float[Tensor, "N 1 C"],
        sin: Float[Tensor, "N 1 C"],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, the first two turned by their places."""
        num_queries, num_keys = self._weights.num_queries, self._weights.num_keys
        turned, values = heads.split([num_queries + num_keys, num_keys], dim=1)
        if layer.query_norm is not None and layer.key_norm is not None:
            queries, keys = turned.split([num_queries, num_keys], dim=1)
            turned = torch.cat([layer.query_norm(queries), layer.key_norm(keys)], dim=1)
        turned = turned * cos + turned.roll(self._half, dims=-1) * sin
        queries, keys = turned.to(values.dtype).split([num_queries, num_keys], dim=1)
        return queries, keys, values

    def _attended(
        self,
        layer: _Layer,
        heads: tuple[Tensor, Tensor, Tensor],
        cache: tuple[Tensor, ...],
        plan: "_Plan",
    ) -> Float[Tensor, "N D"]:
        found: list[Tensor] = []
        prompts, singles = zip(
            *(x.split([plan.num_prompt_tokens, len(plan.filled)]) for x in heads), strict=True
        )
        pieces = (x.split(plan.lengths) for x in prompts)
        for slot, *qkv in zip(plan.prompt_slots, *pieces, strict=True):
            q, k, v = (x.transpose(0, 1)[None] for x in qkv)
            cache[0][slot, :, : k.shape[2]] = k[0]
            cache[1][slot, :, : v.shape[2]] = v[0]
            grouped = q.shape[1] != k.shape[1]
            out = scaled_dot_product_attention(
                q, k, v, is_causal=True, scale=layer.scaling, enable_gqa=grouped
            )
            found.append(out[0].transpose(0, 1).flatten(1))
        for source, target, length in plan.copies:
            for kept in cache:
                kept[target, :, :length] = kept[source, :, :length]
        if plan.filled:
            found.append(self._attended_singly(layer, singles, cache, plan))
        return found[0] if len(found) == 1 else torch.cat(found)

    def _attended_singly(
        self,
        layer: _Layer,
        singles: tuple[Tensor, ...],
        cache: tuple[Tensor, ...],
        plan: "_Plan",
    ) -> Float[Tensor, "n D"]:
        queries, keys, values = singles
        for kept, new in zip(cache, (keys, values), strict=True):
            kept[plan.slots, :, plan.places[plan.num_prompt_tokens :]] = new
        # The query heads of a key-value head stand where a kernel expects queries one by one.
        grouped = queries.unflatten(1, (keys.shape[1], -1)).split(1)
        found = [
            scaled_dot_product_attention(
                query,
                cache[0][slot : slot + 1, :, :filled],
                cache[1][slot : slot + 1, :, :filled],
                scale=layer.scaling,
            )
            for query, slot, filled in zip(grouped, plan.single_slots, plan.filled, strict=True)
        ]
        return torch.cat(found).flatten(1)


@final
@dataclass(frozen=True, kw_only=True)
class _Plan:
    """A pass, as tensors and as the numbers that cut them."""

    ids: Int[Tensor, " N"]
    places: Int[Tensor, " N"]
    last: Int[Tensor, " B"]
    """Which of the N are asked for scores."""
    lengths: list[int]
    prompt_slots: list[int]
    num_prompt_tokens: int
    copies: Sequence[tuple[int, int, int]]
    slots: Int[Tensor, " n"]
    single_slots: list[int]
    filled: list[int]
    """Tokens each single token's slot holds, itself included."""

    @classmethod
    def of(cls, given: Pass, device: torch.device) -> "_Plan":
        lengths = [len(ids) for _, ids in given.prompts]
        total = sum(lengths)
        ids = [token for _, prompt in given.prompts for token in prompt]
        places = [place for length in lengths for place in range(length)]
        last = torch.tensor(lengths, dtype=torch.long).cumsum(0) - 1
        singles = torch.arange(total, total + len(given.tokens))
        single_slots = [slot for slot, _, _ in given.tokens]
        return cls(
            ids=torch.tensor(ids + [token for _, _, token in given.tokens], device=device),
            places=torch.tensor(places + [place for _, place, _ in given.tokens], device=device),
            last=torch.cat([last, singles]).to(device),
            lengths=lengths,
            prompt_slots=[slot for slot, _ in given.prompts],
            num_prompt_tokens=total,
            copies=given.copies,
            slots=torch.tensor(single_slots, dtype=torch.long, device=device),
            single_slots=single_slots,
            filled=[place + 1 for _, place, _ in given.tokens],
        )


@final
class Weights:
    """A model's weights as they act now, in the dtype it computes in: for one call only.

    Args:
        num_real: scores are computed for the entries of the vocabulary before this one.
        packed: lay the matrices out anew, which pays when many tokens are written.
    """

    def __init__(
        self, lm: CausalLM, *, dtype: torch.dtype, num_real: int | None, packed: bool
    ) -> None:
        self.dtype = dtype
        self._packed = packed
        self._found = acting_weights(lm)
        anatomy, parts = anatomy_of(lm.config), layers_of(lm.model)
        backbone: Any = backbone_of(lm.model)
        attention: Any = parts[0].self_attn
        self.angles = backbone.rotary_emb
        self.embedding = lm.model.get_submodule(anatomy.embedding)
        self.layers = [self._layer(f"{anatomy.layers}.{at}", part) for at, part in enumerate(parts)]
        self.final_norm = lm.model.get_submodule(anatomy.final_norm)
        self.num_queries: int = attention.q_proj.weight.shape[0] // attention.head_dim
        self.num_keys: int = attention.k_proj.weight.shape[0] // attention.head_dim
        bias = None if lm.head.bias is None else lm.head.bias[:num_real]
        self.head = joined([lm.head.weight[:num_real]], [bias], dtype=dtype, packed=packed)
        del self._found

    def _matrix(self, *names: str) -> Matrix:
        """The linear layers of these names as one."""
        return joined(
            [self._found[f"{name}.weight"] for name in names],
            [self._found.get(f"{name}.bias") for name in names],
            dtype=self.dtype,
            packed=self._packed,
        )

    def _layer(self, name: str, part: Any) -> _Layer:  # noqa: ANN401  each family has its own class
        inner = dict(part.self_attn.named_children())
        return _Layer(
            input_norm=part.input_layernorm,
            qkv=self._matrix(*(f"{name}.self_attn.{x}_proj" for x in "qkv")),
            query_norm=inner.get("q_norm"),
            key_norm=inner.get("k_norm"),
            scaling=part.self_attn.scaling,
            output=self._matrix(f"{name}.self_attn.o_proj"),
            mlp_norm=part.post_attention_layernorm,
            gate_up=self._matrix(f"{name}.mlp.gate_proj", f"{name}.mlp.up_proj"),
            activation=part.mlp.act_fn,
            down=self._matrix(f"{name}.mlp.down_proj"),
        )


def compute_dtype(lm: CausalLM) -> torch.dtype:
    """What the model's matrices would compute in, called here and now."""
    kind = lm.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else lm.dtype
