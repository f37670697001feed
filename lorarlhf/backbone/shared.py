"""SharedBackbone: one frozen base model, and LoRA roles that take turns on it.

What the roles own (adapters, heads, files) is in `adapters.py`; what they compute is here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import Cache, DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from lorarlhf.backbone.adapters import BASE, Adapters, ScalarHead
from lorarlhf.backbone.base import BaseModel
from lorarlhf.backbone.batch import TokenBatch
from lorarlhf.backbone.logprobs import Predictions, chunked_logprobs, rows_a_chunk
from lorarlhf.backbone.packing import WINDOWS, Packing, unpacked
from lorarlhf.backbone.trunk import (
    TrunkStates,
    layers_path,
    recorded_input,
    returning,
    starting_from,
    trunk_path,
    without,
)
from lorarlhf.data.tokenizer import end_of_turn
from lorarlhf.errors import UserError
from lorarlhf.recipe.sections import LoraShape


class SharedBackbone(nn.Module):
    """A frozen causal language model, with named LoRA adapters and scalar heads.

    A role is the name of an adapter: `policy`, `reference`, `reward`, `critic`, or any other. Only one computes at a
    time. Of these four, one without an adapter computes as the bare base model, as BASE always does.

    Args:
        causal_lm: the loaded base model; every parameter of it is frozen here.
        tokenizer: with a pad token that differs from eos.
        compute_dtype: bfloat16 runs the trunk under autocast; float32 runs it as it is.
        base: which model it is, for the files of its adapters.

    Attributes:
        shares_trunk: whether a pass can be taken up from the middle; see `checks.py`.
        packs_prompts: whether rows can be packed behind one prompt; see `checks.py` and `packing.py`.
    """

    def __init__(
        self,
        causal_lm: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        compute_dtype: torch.dtype,
        base: BaseModel | None = None,
    ) -> None:
        super().__init__()
        self.causal_lm = causal_lm
        self.tokenizer = tokenizer
        self.compute_dtype = compute_dtype
        self._layers_path = layers_path(causal_lm)
        self._trunk_path = trunk_path(causal_lm, self._layers_path)
        self.adapters = Adapters(causal_lm, self.layers, base)
        self.heads = self.adapters.heads  # known to torch here, where the adapters' other tensors are: in causal_lm
        self.shares_trunk = True
        self.packs_prompts = True

    @property
    def device(self) -> torch.device:
        """Where the base model's weights are."""
        return self.causal_lm.device

    @property
    def trunk(self) -> nn.Module:
        """The base model below the language-model head, adapters included."""
        return self.causal_lm.get_submodule(self._trunk_path)

    @property
    def layers(self) -> nn.ModuleList:
        """The trunk's layers, lowest first."""
        layers = self.causal_lm.get_submodule(self._layers_path)
        assert isinstance(layers, nn.ModuleList)
        return layers

    @property
    def is_exact(self) -> bool:
        """Whether a sequence's numbers are the same, to float32's rounding, in any batch, with a cache or without.

        int8 rounds activations too, and by what else is in the batch.
        """
        return self.compute_dtype == torch.float32 and not getattr(self.causal_lm, "is_loaded_in_8bit", False)

    @property
    def attention_window(self) -> int | None:
        """How many tokens back the layers that see least of them see; None where all see everything."""
        config = self.causal_lm.config.get_text_config(decoder=True)
        windows = [getattr(config, name, None) for name in WINDOWS]
        return min((window for window in windows if isinstance(window, int)), default=None)

    @property
    def stop_ids(self) -> list[int]:
        """Tokens that end a response: `end_id`, the tokenizer's eos and those of the generation config."""
        configured = self.causal_lm.generation_config.eos_token_id
        ids = configured if isinstance(configured, list) else [configured]
        return sorted({i for i in [*ids, self.tokenizer.eos_token_id, self.end_id] if i is not None})

    @property
    def end_id(self) -> int:
        """The one of `stop_ids` that the rows of reward model and SFT end with."""
        return end_of_turn(self.tokenizer)

    # Roles

    @property
    def roles(self) -> set[str]:
        """Roles that have an adapter. A reference without one is the bare base model."""
        return self.adapters.names

    @property
    def trained_roles(self) -> tuple[str, ...]:
        """Roles whose weights learn at present."""
        return self.adapters.trained

    @property
    def peft_model(self) -> PeftModel | None:
        """PEFT's wrapper of the base model, for trainers that want one; None before the first adapter."""
        return self.adapters.peft_model

    @property
    def reward_head(self) -> ScalarHead:
        return self.head("reward")

    @property
    def value_head(self) -> ScalarHead:
        return self.head("critic")

    def head(self, role: str) -> ScalarHead:
        """The scalar head of a role. Raises KeyError if it has none."""
        return self.adapters.head(role)

    def attach(self, role: str, shape: LoraShape) -> None:
        """Give a role a fresh adapter that changes nothing yet, drawn from torch's random state.

        Raises UserError where `target_modules` names no layer of the model, or its embedding or head.
        """
        self.adapters.attach(role, shape)

    def copy_role(self, source: str, target: str) -> None:
        """Give `target` the same adapter as `source`, and the same head if it has one."""
        self.adapters.copy(source, target)

    def save_role(self, role: str, folder: Path) -> None:
        """Write a role's adapter in plain PEFT format; one with a head as sequence classification."""
        self.adapters.save(role, folder)

    def load_role(self, role: str, folder: Path, with_head: bool = False, allow_other_base: bool = False) -> None:
        """Read what `save_role` (or plain PEFT) wrote, in place of what the role had.

        Args:
            with_head: the role is to score: its file must hold a head, as those of reward and critic must.
            allow_other_base: also an adapter that says it was trained on another base model.

        Raises:
            UserError: it is no plain LoRA adapter, does not fit the base model, was trained on another, lacks the head,
                or computes NaN or infinity.
        """
        self.adapters.load(role, folder, with_head, allow_other_base)
        self._check_finite(role, folder)

    @torch.no_grad()
    def _check_finite(self, role: str, folder: Path) -> None:
        """Weights that are each finite can be far too large together, or be multiplied by an alpha that is."""
        tokens = TokenBatch.from_lists([[self.end_id, *range(3)]], [[self.end_id]]).to(self.device)
        hidden = self.hidden_states(role, tokens)
        computed = [hidden, *([self.head(role)(hidden)] if role in self.adapters.heads else [])]
        if not all(numbers.isfinite().all() for numbers in computed):
            raise UserError(
                f"{folder}: the adapter computes NaN or infinity from a few tokens: its weights or its lora_alpha are "
                "far too large; take another or train anew"
            )

    def first_layer(self, role: str) -> int:
        """Index of the lowest layer that the role's adapter changes; the number of layers if it changes none.

        0 in a model whose pass cannot be taken up from the middle: the role needs all of it.
        """
        return self.adapters.first_layer(role) if self.shares_trunk else 0

    def role_parameters(self, role: str) -> Iterator[nn.Parameter]:
        """The tensors that belong to one role alone: its adapter and its head."""
        return self.adapters.parameters(role)

    def train_roles(self, *roles: str) -> None:
        """Let these roles' adapters and heads receive gradients, in float32, and nothing else."""
        self.adapters.train(*roles)

    def role(self, role: str) -> contextlib.AbstractContextManager[None]:
        """Compute as `role` inside the block; BASE is the bare base model.

        Raises KeyError for a name, other than the four of RL, that no adapter has.
        """
        return self.adapters.computing_as(role)

    def enable_gradient_checkpointing(self) -> None:
        """Store only each layer's input in training, and compute the rest again in backward, as the same role."""

        # By the time of backward another role computes: without its name, the layer would be recomputed as that one
        # and the gradient be wrong, without an error.
        def checkpoint_in_role(function: Callable[..., Any], *args: Any) -> Any:
            role = self.adapters.active

            def run(*args: Any) -> Any:
                with self.role(role):
                    return function(*args)

            return checkpoint(run, *args, use_reentrant=False)

        self.causal_lm._set_gradient_checkpointing(enable=True, gradient_checkpointing_func=checkpoint_in_role)

    # Computation

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Adapters are stored in float32 and multiplied in the compute type."""
        return torch.autocast(self.device.type, dtype=self.compute_dtype, enabled=self.compute_dtype != torch.float32)

    def hidden_states(
        self, role: str, sequences: TokenBatch, from_trunk: TrunkStates | None = None, columns: Tensor | None = None
    ) -> Tensor:
        """[B, L, H] last hidden states. Attention is causal, so right padding needs no mask; its rows are garbage.

        Args:
            from_trunk: where to go on from, at most as high as the role's `first_layer`.
            columns: [B, N] of each row, for [B, N, H] of those alone: rows that were packed take several times as much
                memory once each has its prompt again.
        """
        # No attention mask: with none, attention takes its causal kernel, which is faster than one that reads a mask.
        inputs, packing = {"input_ids": sequences.tokens}, None
        if sequences.groups is not None:
            packing = Packing.of(sequences)
            inputs = packing.inputs(sequences, self.compute_dtype)
        start: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if from_trunk:
            states = packing.pack(from_trunk.states) if packing else from_trunk.states
            start = starting_from(states, self.layers, from_trunk.layer)
        with self.role(role), self.autocast(), start:
            hidden: Tensor = self.trunk(**inputs, use_cache=False).last_hidden_state
        if packing:
            return packing.unpack(hidden, columns)
        if columns is None:
            return hidden
        return hidden[torch.arange(len(columns), device=columns.device).unsqueeze(1), columns]

    def trunk_states(self, sequences: TokenBatch, layer: int) -> TrunkStates:
        """What the bare base model computes below a layer. Raises IndexError if there is no such layer."""
        # The layers above hand on their input, so the pass costs no more than what lies below.
        with without(self.layers[layer:]), recorded_input(self.layers[layer]) as recorded:
            self.hidden_states(BASE, sequences)
        return TrunkStates(unpacked(recorded[0], sequences), layer)

    def growing_cache(self) -> Cache:
        """An empty cache of keys and values, or of what else the family keeps of earlier tokens."""
        return DynamicCache(config=self.causal_lm.config)

    @staticmethod
    def keep_rows(cache: Cache, rows: Any) -> None:
        """Leave only some of the rows in a growing cache, given by their present indices [n]."""
        cache.reorder_cache(rows)  # `batch_select_indices`, made for it, knows layers with keys and values alone

    def cached_states(self, tokens: Tensor, attention: Tensor, positions: Tensor, cache: Cache) -> Tensor:
        """Last hidden states of the next tokens, which are added to the cache. Inside `role` and `autocast`.

        Args:
            tokens, positions: [n, W] ids and their places in their rows.
            attention: [n, all tokens so far] 0 at left padding; of a cache of fixed size, to its end.

        Returns:
            [n, W, H].
        """
        hidden: Tensor = self.trunk(
            input_ids=tokens,
            attention_mask=attention,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token, [..., H] -> [..., V], as the model's own forward gives them.

        It is the model's own forward, with hidden states in place of its trunk: families scale and cap before and after
        their heads.
        """
        # Side by side: where rows are apart, as each prompt's last are, torch copies the head's weight for every row.
        rows = hidden.reshape(-1, 1, hidden.shape[-1]).contiguous()
        tokens = torch.zeros(rows.shape[:2], dtype=torch.long, device=hidden.device)  # nothing reads them
        # Which module a model calls for its trunk differs: the outermost that contains it, or the trunk itself.
        parts = self._trunk_path.split(".")
        around = [self.causal_lm.get_submodule(".".join(parts[: end + 1])) for end in range(len(parts))]
        with self.autocast(), returning(rows, around):
            logits: Tensor = self.causal_lm(input_ids=tokens, use_cache=False).logits
        return logits.reshape(*hidden.shape[:-1], logits.shape[-1])

    def logprobs(
        self,
        role: str,
        sequences: TokenBatch,
        temperature: float = 1.0,
        with_entropy: bool = True,
        drawn: TokenBatch | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Log-probability of each response token, and entropy of the distribution it was drawn from.

        Args:
            drawn: whose response tokens they are of, where `sequences` are the same but for the last token of each,
                which no log-probability depends on.

        Returns:
            two [B, R] float32 tensors, 0 at padding; the entropy is 0 if it is not asked for, which costs less.
        """
        before, mask = self._states_before_tokens(role, sequences)
        # Only states that predict a response token go through the head, as one list [N, H]: prompts and padding are
        # most of a batch, and a row of the vocabulary is some forty times as wide as a hidden state.
        targets = _response_tokens(drawn or sequences)[mask]
        logprobs, entropy, _ = self.predictions(before[mask], targets, temperature, with_entropy)
        return _scatter(logprobs, mask), _scatter(entropy, mask)

    def predictions(
        self, states: Tensor, targets: Tensor, temperature: float = 1.0, with_entropy: bool = True
    ) -> Predictions:
        """What last hidden states [N, H] say of the [N] tokens that come next: scores are only made in chunks."""
        chunk = rows_a_chunk(self.causal_lm.get_output_embeddings().out_features, self.device)
        return chunked_logprobs(states, targets, self.logits, temperature, chunk, with_entropy)

    def values(self, sequences: TokenBatch, from_trunk: TrunkStates | None = None) -> Tensor:
        """[B, R] the critic's value of the state in which each response token was chosen, 0 at padding."""
        before, mask = self._states_before_tokens("critic", sequences, from_trunk)
        return _scatter(self.value_head(before[mask]).squeeze(-1), mask)

    def scores(self, sequences: TokenBatch, from_trunk: TrunkStates | None = None, role: str = "reward") -> Tensor:
        """[B] a reward model's score, read at the last token of each sequence.

        Args:
            role: an adapter with a head: the policy is trained against one reward model and may be judged by another.
        """
        hidden = self.hidden_states(role, sequences, from_trunk, (sequences.lengths - 1).unsqueeze(1))
        scores: Tensor = self.head(role)(hidden.squeeze(1)).squeeze(-1)
        return scores

    def _states_before_tokens(
        self, role: str, sequences: TokenBatch, from_trunk: TrunkStates | None = None
    ) -> tuple[Tensor, Tensor]:
        """[B, R, H] the hidden state that predicts each response token, and the response mask."""
        mask = sequences.response_mask
        # The state at a token predicts the next one. The first response token is predicted by the prompt's last, so a
        # critic's value of it is that of the prompt alone.
        index = _response_index(sequences, mask.shape[1]) - 1
        index = index.clamp(max=sequences.tokens.shape[1] - 1)  # padding may point beyond the end
        return self.hidden_states(role, sequences, from_trunk, index), mask


# Lengths alone say where a response is: token ids never do, as pad and eos may stand anywhere.


def _response_index(sequences: TokenBatch, width: int) -> Tensor:
    """[B, R] where each response token stands in its row; at padding the row's end or beyond."""
    return sequences.prompt_lengths.unsqueeze(1) + torch.arange(width, device=sequences.tokens.device)


def _response_tokens(sequences: TokenBatch) -> Tensor:
    """[B, R] ids; any at padding."""
    index = _response_index(sequences, sequences.response_mask.shape[1])
    return sequences.tokens.gather(1, index.clamp(max=sequences.tokens.shape[1] - 1))


def _scatter(values: Tensor, mask: Tensor) -> Tensor:
    """[N] values of the response tokens, row after row, back to [B, R] with 0 at padding."""
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)
