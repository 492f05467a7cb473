"""A causal language model as the rest of the package sees it: hidden states and a head."""

from itertools import pairwise
from typing import Literal, cast, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from tutelage.core.records import View
from tutelage.core.targets import Head
from tutelage.models.anatomy import anatomy_of, backbone_of, head_of
from tutelage.models.attention import ROW_ATTENTION, register
from tutelage.models.routers.experts import SORTED_EXPERTS, register_experts

Layout = Literal["packed", "padded"]
"""How rows reach the model: end to end in one sequence, or each filled up to the longest."""


@final
class CausalLM(nn.Module):
    """Wraps a transformers model; both layouts give the same hidden states.

    `packed` wastes nothing on padding. `padded` is for kernels that know only rectangles.
    """

    def __init__(self, model: PreTrainedModel, *, layout: Layout = "packed") -> None:
        super().__init__()
        register()
        model.set_attn_implementation(ROW_ATTENTION)
        if anatomy_of(model.config).experts is not None:
            register_experts()
            model.set_experts_implementation(SORTED_EXPERTS)
        # With pad = eos, transformers would keep back the gradient of the end of a turn. Our rows
        # need no padding entry at all.
        embedding = model.get_submodule(anatomy_of(model.config).embedding)
        cast(nn.Embedding, embedding).padding_idx = None
        self.model = model
        self.layout: Layout = layout
        self.training = model.training
        self.bridge: nn.Module | None = None
        """What is trained beside the model and kept in checkpoints, but is no part of what is
        saved: projections to a teacher's space."""

    def hidden(self, view: View) -> Float[Tensor, "L D"]:
        """The last hidden state of every token, after the final norm; no logits are computed."""
        if self.layout == "padded":
            return self._padded(view)
        starts: list[int] = view.row_starts.tolist()
        lengths = tuple(end - start for start, end in pairwise(starts))
        # A mask of four dimensions is handed on as it is: none is built, and none is read.
        no_mask = view.input_ids.new_ones((1, 1, 1, 1))
        return self._run(
            input_ids=view.input_ids[None],
            position_ids=view.position_ids[None],
            attention_mask=no_mask,
            row_lengths=lengths,
        )[0]

    def forward(self, view: View) -> Float[Tensor, "L D"]:
        """`hidden`, for wrappers that only know how to call a module."""
        return self.hidden(view)

    @property
    def head(self) -> Head:
        """The map from hidden states to logits; its weight is the model's own, not a copy."""
        return head_of(self.model)

    @property
    def config(self) -> PretrainedConfig:
        """The transformers config, with the family's own names."""
        return self.model.config

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are kept in."""
        return self.head.weight.dtype

    def num_parameters(self, *, trainable_only: bool = False) -> int:
        """Numbers in the weights; a tied weight counts once."""
        return sum(
            p.numel() for p in self.model.parameters() if p.requires_grad or not trainable_only
        )

    def _padded(self, view: View) -> Float[Tensor, "L D"]:
        starts: list[int] = view.row_starts.tolist()
        rows = [slice(a, b) for a, b in pairwise(starts)]
        padded_ids, padded_positions = (
            nn.utils.rnn.pad_sequence([ids[row] for row in rows], batch_first=True)
            for ids in (view.input_ids, view.position_ids)
        )
        lengths = view.row_starts.diff()
        columns = torch.arange(padded_ids.shape[1], device=lengths.device)
        is_token = columns < lengths[:, None]
        hidden = self._run(
            input_ids=padded_ids,
            position_ids=padded_positions,
            attention_mask=is_token.long(),
        )
        return hidden[is_token]

    def _run(self, **inputs: Tensor | tuple[int, ...]) -> Tensor:
        return backbone_of(self.model)(**inputs, use_cache=False).last_hidden_state
