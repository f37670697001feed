"""SharedBackbone: one frozen base model, and LoRA roles that take turns on it.

The one place that knows about quantisation, adapters and heads.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, TaskType, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from lorarlhf.backbone.adapters import SCORE_KEY, read_adapter, same_shape
from lorarlhf.backbone.batch import TokenBatch
from lorarlhf.backbone.logprobs import chunked_logprobs, rows_a_chunk
from lorarlhf.backbone.lora import use_fused_forward
from lorarlhf.backbone.trunk import TrunkStates, decoder_layers, recorded_input, starting_from, without
from lorarlhf.errors import UserError
from lorarlhf.recipe.sections import LoraShape, Role

HEAD_OF_ROLE = {"reward": "reward_head", "critic": "value_head"}


class ScalarHead(nn.Linear):
    """Linear(hidden, 1) without bias, float32 whatever the rest computes in."""

    def __init__(self, hidden_size: int, device: torch.device) -> None:
        super().__init__(hidden_size, 1, bias=False, dtype=torch.float32, device=device)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=1 / (self.in_features + 1) ** 0.5)  # Stiennon et al. 2020, appendix B

    def forward(self, hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return F.linear(hidden.float(), self.weight)


class SharedBackbone(nn.Module):
    """A frozen causal language model with named LoRA adapters and two scalar heads.

    Only one role computes at a time. Which tensors may train is set by `train_roles` and by nothing else: switching
    roles never touches `requires_grad`.

    Args:
        causal_lm: the loaded base model; every parameter of it is frozen here.
        tokenizer: with a pad token that differs from eos.
        compute_dtype: bfloat16 runs the trunk under autocast; float32 runs it as it is.
    """

    def __init__(
        self, causal_lm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, compute_dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.causal_lm = causal_lm
        self.tokenizer = tokenizer
        self.compute_dtype = compute_dtype
        self.peft_model: PeftModel | None = None
        hidden_size = causal_lm.get_output_embeddings().in_features  # not always the config's: OPT projects
        self.reward_head = ScalarHead(hidden_size, self.device)
        self.value_head = ScalarHead(hidden_size, self.device)
        self._role: Role | None = "reference"
        self._lora_layers: list[LoraLayer] = []
        linear = [name for name, module in self.layers[0].named_modules() if isinstance(module, (nn.Linear, Conv1D))]
        self._linear_names = sorted({name.split(".")[-1] for name in linear})
        self.train_roles()
        self._check_logits()

    @property
    def device(self) -> torch.device:
        return self.causal_lm.device

    @property
    def trunk(self) -> nn.Module:
        """The base model below the language-model head, adapters included."""
        return self.causal_lm.base_model

    @property
    def layers(self) -> nn.ModuleList:
        return decoder_layers(self.trunk, self.causal_lm.config.get_text_config().num_hidden_layers)

    @property
    def stop_ids(self) -> list[int]:
        """Tokens that end a response: the tokenizer's eos and those of the generation config."""
        configured = self.causal_lm.generation_config.eos_token_id
        ids = configured if isinstance(configured, list) else [configured]
        return sorted({i for i in [*ids, self.tokenizer.eos_token_id] if i is not None})

    # Roles

    @property
    def roles(self) -> set[str]:
        """Roles that have an adapter. A reference without one is the bare base model."""
        return set(self.peft_model.peft_config) if self.peft_model else set()

    def attach(self, role: Role, shape: LoraShape) -> None:
        """Give a role a fresh adapter that changes nothing yet (B is 0), drawn from torch's random state.

        Raises UserError where `target_modules` names no layer of the model, or its embedding or head.
        """
        targets, first = shape.target_modules, len(self.layers) - shape.layer_count(len(self.layers))
        if first and targets == "all-linear":  # PEFT takes a choice of layers only beside names
            targets = self._linear_names
        config = PeftLoraConfig(
            task_type=TaskType.CAUSAL_LM,
            r=shape.r,
            lora_alpha=shape.alpha,
            target_modules=targets,
            layers_to_transform=list(range(first, len(self.layers))) if first else None,
        )
        self._attach(role, config, source="lora.target_modules")

    def _attach(self, role: Role, config: PeftLoraConfig, source: object) -> None:
        self._detach(role)
        try:
            if self.peft_model is None:
                self.peft_model = get_peft_model(self.causal_lm, config, adapter_name=role)
            else:
                self.peft_model.add_adapter(role, config)
        except ValueError as error:  # no such layers
            reason = str(error).splitlines()[0]
            if isinstance(source, Path):
                raise self._made_for_another(source, reason) from error
            raise UserError(f"{source}: {reason}") from error
        ends = (self.causal_lm.get_input_embeddings(), self.causal_lm.get_output_embeddings())
        if any(isinstance(module, LoraLayer) for module in ends):
            raise UserError(f"{source}: the embedding and the language-model head take no adapter; leave them out")
        self._lora_layers = [module for module in self.causal_lm.modules() if isinstance(module, LoraLayer)]
        for layer in self._lora_layers:
            use_fused_forward(layer)
        # PEFT activates and unfreezes what it adds (and may freeze the rest): state what trains anew.
        self._activate(self._role)
        self.train_roles(*self.trained_roles)

    def _detach(self, role: Role) -> None:
        if self.peft_model is None or role not in self.roles:
            return
        del self.peft_model.peft_config[role]
        for layer in self._lora_layers:
            for matrices in (layer.lora_A, layer.lora_B):
                if role in matrices:
                    del matrices[role]

    def first_layer(self, role: Role) -> int:
        """Index of the lowest layer that the role's adapter changes; the number of layers if it changes none."""
        adapted = {id(layer) for layer in self._lora_layers if role in layer.lora_A}
        inside = [[id(module) in adapted for module in layer.modules()] for layer in self.layers]
        if sum(map(sum, inside)) < len(adapted):  # some of it is outside the layers
            return 0
        return next((index for index, found in enumerate(inside) if any(found)), len(inside))

    def copy_role(self, source: Role, target: Role) -> None:
        """Give `target` the same adapter, and head if both have one, as `source`, overwriting what it had."""
        config = self._peft_config(source)
        if target not in self.roles or not same_shape(config, self._peft_config(target)):
            self._attach(target, config, source)
        for layer in self._lora_layers:
            for matrices in (layer.lora_A, layer.lora_B):
                if source in matrices:
                    matrices[target].load_state_dict(matrices[source].state_dict())
        if source in HEAD_OF_ROLE and target in HEAD_OF_ROLE:
            self.head(target).load_state_dict(self.head(source).state_dict())

    def _peft_config(self, role: Role) -> PeftLoraConfig:
        assert self.peft_model is not None, "no role has been attached"
        config = copy.deepcopy(self.peft_model.peft_config[role])
        assert isinstance(config, PeftLoraConfig)
        return config

    def head(self, role: Role) -> ScalarHead:
        return getattr(self, HEAD_OF_ROLE[role])

    def role_parameters(self, role: Role) -> Iterator[nn.Parameter]:
        """The tensors that belong to one role alone: its adapter and its head."""
        for layer in self._lora_layers:
            for matrices in (layer.lora_A, layer.lora_B):
                if role in matrices:
                    yield from matrices[role].parameters()
        if role in HEAD_OF_ROLE:
            yield from self.head(role).parameters()

    def train_roles(self, *roles: Role) -> None:
        """Let these roles' adapters and heads receive gradients, in float32, and nothing else."""
        self.trained_roles = roles
        self.requires_grad_(False)
        for role in roles:
            for parameter in self.role_parameters(role):
                parameter.data = parameter.data.float()
                parameter.requires_grad_(True)

    @contextlib.contextmanager
    def role(self, role: Role | None) -> Iterator[None]:
        """Compute as `role` inside the block; None is the bare base model."""
        before = self._role
        self._activate(role)
        try:
            yield
        finally:
            self._activate(before)

    def _activate(self, role: Role | None) -> None:
        # Not PEFT's set_adapter, which flips requires_grad. Layers without this adapter pass through unchanged.
        self._role = role
        for layer in self._lora_layers:
            layer._active_adapter = [role] if role else []
            layer._disable_adapters = False

    def enable_gradient_checkpointing(self) -> None:
        """Store only each layer's input in training, and compute the rest again in backward, as the same role."""

        def checkpoint_in_role(function: Callable[..., Any], *args: Any) -> Any:
            role = self._role

            def run(*args: Any) -> Any:
                with self.role(role):
                    return function(*args)

            return checkpoint(run, *args, use_reentrant=False)

        self.causal_lm._set_gradient_checkpointing(enable=True, gradient_checkpointing_func=checkpoint_in_role)

    # Computation

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Adapters are stored in float32 and multiplied in the compute type."""
        return torch.autocast(self.device.type, dtype=self.compute_dtype, enabled=self.compute_dtype != torch.float32)

    def hidden_states(self, role: Role | None, sequences: TokenBatch, below: TrunkStates | None = None) -> Tensor:
        """[B, L, H] last hidden states. Attention is causal, so right padding needs no mask; its rows are garbage.

        Args:
            below: where to go on from, at most as high as the role's `first_layer`.
        """
        start = starting_from(below.states, self.layers, below.layer) if below else contextlib.nullcontext()
        with self.role(role), self.autocast(), start:
            return self.trunk(input_ids=sequences.tokens, use_cache=False).last_hidden_state

    def trunk_states(self, sequences: TokenBatch, layer: int) -> TrunkStates:
        """What the bare base model computes below a layer. Raises IndexError if there is no such layer."""
        with without(self.layers[layer:]), recorded_input(self.layers[layer]) as recorded:
            self.hidden_states(None, sequences)
        return TrunkStates(recorded[0], layer)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token, [..., H] -> [..., V], as the model's own forward gives them."""
        with self.autocast():
            logits = self.causal_lm.get_output_embeddings()(hidden)
        softcap = getattr(self.causal_lm.config.get_text_config(), "final_logit_softcapping", None)
        return logits if softcap is None else softcap * torch.tanh(logits / softcap)

    def logprobs(
        self, role: Role, sequences: TokenBatch, temperature: float = 1.0, with_entropy: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Log-probability of each response token, and entropy of the distribution it was drawn from.

        Returns:
            two [B, R] float32 tensors, 0 at padding; the entropy is 0 if it is not asked for, which costs less.
        """
        before, mask = self._states_before_tokens(role, sequences)
        targets = _response_tokens(sequences)[mask]
        chunk = rows_a_chunk(self.causal_lm.get_output_embeddings().out_features, self.device)
        logprobs, entropy = chunked_logprobs(before[mask], targets, self.logits, temperature, chunk, with_entropy)
        return _scatter(logprobs, mask), _scatter(entropy, mask)

    def values(self, sequences: TokenBatch, below: TrunkStates | None = None) -> Tensor:
        """[B, R] the critic's value of the state in which each response token was chosen, 0 at padding."""
        before, mask = self._states_before_tokens("critic", sequences, below)
        return _scatter(self.value_head(before[mask]).squeeze(-1), mask)

    def scores(self, sequences: TokenBatch, below: TrunkStates | None = None) -> Tensor:
        """[B] the reward model's score, read at the last token of each sequence."""
        hidden = self.hidden_states("reward", sequences, below)
        rows = torch.arange(len(sequences), device=hidden.device)
        return self.reward_head(hidden[rows, sequences.lengths - 1]).squeeze(-1)

    def _states_before_tokens(
        self, role: Role, sequences: TokenBatch, below: TrunkStates | None = None
    ) -> tuple[Tensor, Tensor]:
        """[B, R, H] the hidden state that predicts each response token, and the response mask."""
        hidden = self.hidden_states(role, sequences, below)
        mask = sequences.response_mask
        index = _response_index(sequences, mask.shape[1]) - 1
        rows = torch.arange(len(sequences), device=hidden.device).unsqueeze(1)
        return hidden[rows, index.clamp(max=hidden.shape[1] - 1)], mask

    def sequence_classifier(self) -> PreTrainedModel:
        """This backbone as the family's own sequence classifier: same trunk, `reward_head` as its score.

        It is what TRL's RewardTrainer trains; nothing is copied.
        """
        config = copy.deepcopy(self.causal_lm.config)
        config.num_labels = 1
        config.get_text_config().pad_token_id = self.tokenizer.pad_token_id
        with torch.device("meta"):
            try:
                classifier = AutoModelForSequenceClassification.from_config(config)
            except ValueError:
                raise UserError(
                    f"model.name: {type(self.causal_lm).__name__} has no sequence classifier in transformers, "
                    "so no reward model can be trained on it; choose another model"
                ) from None
        setattr(classifier, classifier.base_model_prefix, self.trunk)
        classifier.score = self.reward_head
        return classifier

    # Files

    def save_role(self, role: Role, folder: Path) -> None:
        """Write a role's adapter in plain PEFT format; reward and critic as sequence classification with their head."""
        # False: PEFT would otherwise ask the Hub whether the embedding has been resized.
        state = get_peft_model_state_dict(self.peft_model, adapter_name=role, save_embedding_layers=False)
        config = self._peft_config(role)
        config.inference_mode = True
        config.base_model_name_or_path = self.causal_lm.name_or_path
        if role in HEAD_OF_ROLE:
            state[SCORE_KEY] = self.head(role).weight
            config.task_type, config.modules_to_save = TaskType.SEQ_CLS, ["score"]
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {key: value.detach().float().cpu().contiguous() for key, value in state.items()}
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        config.save_pretrained(str(folder))

    def load_role(self, role: Role, folder: Path) -> None:
        """Read what `save_role` (or plain PEFT) wrote, in place of what the role had.

        Raises UserError if it is no plain LoRA adapter or does not fit the base model.
        """
        config, state = read_adapter(folder)
        score = state.pop(SCORE_KEY, None)
        if role in HEAD_OF_ROLE and score is None:
            raise UserError(f"{folder}: the adapter has no score head ({SCORE_KEY}); train one with lorarlhf reward")
        if role not in self.roles or not same_shape(config, self._peft_config(role)):
            self._attach(role, config, source=folder)
        try:
            if role in HEAD_OF_ROLE:
                self.head(role).load_state_dict({"weight": score})
            result: Any = set_peft_model_state_dict(self.peft_model, state, adapter_name=role)
            wrong = [*result.unexpected_keys, *(key for key in result.missing_keys if f".{role}." in key)]
        except RuntimeError as error:  # tensors of another shape
            wrong = [str(error).splitlines()[-1].strip()]
        if wrong:
            raise self._made_for_another(folder, wrong[0])

    def _made_for_another(self, folder: Path, reason: str) -> UserError:
        base = self.causal_lm.name_or_path
        return UserError(f"{folder}: the adapter was made for another model than {base}: {reason}")

    def _check_logits(self) -> None:
        """Some families scale their logits after the head; `logits` must not differ from the model's own forward."""
        tokens = torch.arange(4, device=self.device).unsqueeze(0)
        with torch.no_grad():
            own = self.logits(self.hidden_states("reference", _as_prompt(tokens)))
            with self.autocast():
                expected = self.causal_lm(input_ids=tokens, use_cache=False).logits
        if not torch.allclose(own.float(), expected.float(), rtol=1e-2, atol=1e-2):
            raise UserError(
                f"model.name: {type(self.causal_lm).__name__} changes its logits after the language-model head in a "
                "way lorarlhf does not know; choose another model"
            )


def _as_prompt(tokens: Tensor) -> TokenBatch:
    lengths = torch.full((tokens.shape[0],), tokens.shape[1], device=tokens.device)
    return TokenBatch(tokens, lengths, torch.zeros_like(lengths))


def _response_index(sequences: TokenBatch, width: int) -> Tensor:
    """[B, R] where each response token stands in its row; at padding the row's end or beyond."""
    return sequences.prompt_lengths.unsqueeze(1) + torch.arange(width, device=sequences.tokens.device)


def _response_tokens(sequences: TokenBatch) -> Tensor:
    index = _response_index(sequences, sequences.response_mask.shape[1])
    return sequences.tokens.gather(1, index.clamp(max=sequences.tokens.shape[1] - 1))


def _scatter(values: Tensor, mask: Tensor) -> Tensor:
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)
