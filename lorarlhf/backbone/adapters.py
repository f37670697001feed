"""Adapters: the LoRA adapters and scalar heads that take turns on one frozen model, and their files."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch
import torch.nn.functional as F
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, TaskType, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.tuners_utils import _check_lora_target_modules_mamba
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.pytorch_utils import Conv1D

from lorarlhf.backbone.adapter_files import CONFIG, SCORE_KEY, WEIGHTS, read_adapter
from lorarlhf.backbone.base import BaseModel, check_base
from lorarlhf.backbone.lora import use_fused_forward
from lorarlhf.errors import UserError, first_line
from lorarlhf.files import written_into
from lorarlhf.recipe.sections import LoraShape

BASE = "base"  # stands for the bare base model wherever the name of an adapter is asked for
SCALAR_ROLES = ("reward", "critic")  # always have a head; other adapters have one if their file does
# The jobs of RL. Until one has an adapter it computes as the bare base does, which is what a fresh adapter would do.
ROLES = ("policy", "reference", *SCALAR_ROLES)
PLAIN_PRODUCTS = [kind.forward for kind in (nn.Linear, Conv1D, bnb.nn.Linear4bit, bnb.nn.Linear8bitLt)]


class ScalarHead(nn.Linear):
    """Linear(hidden, 1) without bias, float32 whatever the rest computes in."""

    def __init__(self, hidden_size: int, device: torch.device) -> None:
        super().__init__(hidden_size, 1, bias=False, dtype=torch.float32, device=device)

    def reset_parameters(self) -> None:
        """Draw the weight anew, from torch's generator."""
        nn.init.normal_(self.weight, std=1 / (self.in_features + 1) ** 0.5)  # Stiennon et al. 2020, appendix B

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., H] states as [..., 1] numbers, in float32."""
        with torch.autocast(hidden.device.type, enabled=False):
            return F.linear(hidden.float(), self.weight)


class Adapters:
    """Named LoRA adapters on a frozen causal language model, of which at most one computes at a time.

    PEFT makes the layers and knows the files. It couples what computes with what trains (`set_adapter` and
    `disable_adapter` flip `requires_grad`, adding one adapter may freeze another), so both are settled here: `active`
    says what computes, `train` what trains, and neither touches the other.

    Args:
        causal_lm: the model; every parameter of it is frozen here.
        layers: its decoder layers.
        base: what adapters are said to be trained on in their files; None says nothing, and compares nothing.

    Attributes:
        peft_model: PEFT's wrapper of the model; None before the first adapter.
        lora_layers: the modules of the model that carry any adapter.
        heads: the scalar heads, by adapter. A head stays outside PEFT, which would copy it and choose its type.
        active: the adapter that computes now.
        trained: the adapters that train.
    """

    def __init__(self, causal_lm: PreTrainedModel, layers: nn.ModuleList, base: BaseModel | None = None) -> None:
        self.causal_lm = causal_lm
        self.layers = layers
        self.base = base
        self.peft_model: PeftModel | None = None
        self.lora_layers: list[LoraLayer] = []
        hidden_size = causal_lm.get_output_embeddings().in_features  # not always the config's: OPT projects
        self.heads = nn.ModuleDict({role: ScalarHead(hidden_size, causal_lm.device) for role in SCALAR_ROLES})
        self.active = BASE
        self._linear_names = _linear_names(causal_lm, layers)
        self._path = next(name for name, module in causal_lm.named_modules() if module is layers)
        parts = {part for path, _ in causal_lm.named_parameters() for part in path.split(".")}
        self._taken_names = {BASE, "base_model", "model", "base_layer", "lora_A", "lora_B", *parts}
        self.train()

    @property
    def names(self) -> set[str]:
        """The adapters there are."""
        return set(self.peft_model.peft_config) if self.peft_model else set()

    def attach(self, name: str, shape: LoraShape) -> None:
        """A fresh adapter that changes nothing yet (B is 0), drawn from torch's random state.

        Raises UserError where `target_modules` names no layer of the model, or its embedding or head.
        """
        self._check_rank("lora.r", shape.r)
        first = len(self.layers) - shape.layer_count(len(self.layers))
        targets = self._linear_names if shape.target_modules == "all-linear" else shape.target_modules
        config = PeftLoraConfig(
            task_type=TaskType.CAUSAL_LM,
            r=shape.r,
            lora_alpha=shape.alpha,
            target_modules=targets,
            layers_to_transform=list(range(first, len(self.layers))) if first else None,
            exclude_modules=self._outside_layers(targets),
        )
        try:
            self._add(name, config)
        except _NoSuchLayersError as error:
            raise UserError(f"lora.target_modules: {error}") from error
        self._refuse_ends("lora.target_modules")

    def _outside_layers(self, targets: list[str]) -> str | None:
        """What PEFT must leave out, as a pattern, if something outside the layers bears a name of one inside.

        So do the towers of a model of text and images, and what BERT's relatives have before their head.
        """
        endings = tuple(f".{target}" for target in targets)
        inside = [f".{path}" for path, _ in self.layers.named_modules()]
        endings = tuple(ending for ending in endings if any(path.endswith(ending) for path in inside))
        for path, _ in self.causal_lm.named_modules():
            if f".{path}".endswith(endings) and not path.startswith(f"{self._path}."):
                return rf"(?!{re.escape(self._path)}\.).*"
        return None

    def detach(self, name: str) -> None:
        """Remove an adapter, if there is one of this name. Its head stays."""
        if self.peft_model is None or name not in self.names:
            return
        del self.peft_model.peft_config[name]
        for matrices in self._matrices(name):
            del matrices[name]

    def copy(self, source: str, target: str) -> None:
        """Give `target` the adapter of `source`, and its head if it has one, overwriting what `target` had."""
        config = self.config(source)
        if target not in self.names or not same_shape(config, self.config(target)):
            self._add(target, config)
        for matrices in self._matrices(source):
            matrices[target].load_state_dict(matrices[source].state_dict())
        if source in self.heads:
            self._set_head(target, self.head(source).weight)

    def config(self, name: str) -> PeftLoraConfig:
        """A copy of PEFT's configuration of an adapter."""
        assert self.peft_model is not None, "there is no adapter yet"
        config = deepcopy(self.peft_model.peft_config[name])
        assert isinstance(config, PeftLoraConfig)
        return config

    def head(self, name: str) -> ScalarHead:
        """Raises KeyError if the adapter has none."""
        head = self.heads[name]
        assert isinstance(head, ScalarHead)
        return head

    def parameters(self, name: str) -> Iterator[nn.Parameter]:
        """The tensors that belong to one adapter alone: A and B of each layer, and its head."""
        for matrices in self._matrices(name):
            yield from matrices[name].parameters()
        if name in self.heads:
            yield from self.head(name).parameters()

    def first_layer(self, name: str) -> int:
        """Index of the lowest layer that the adapter changes; the number of layers if it changes none."""
        adapted = {id(layer) for layer in self.lora_layers if name in layer.lora_A}
        inside = [[id(module) in adapted for module in layer.modules()] for layer in self.layers]
        if sum(map(sum, inside)) < len(adapted):  # some of it is outside the layers
            return 0
        return next((index for index, changed in enumerate(inside) if any(changed)), len(inside))

    # What computes, what trains

    @contextlib.contextmanager
    def computing_as(self, name: str) -> Iterator[None]:
        """Compute with this adapter inside the block.

        Raises KeyError if there is none, unless the name is BASE or one of ROLES: those are the bare base then.
        """
        if name not in (*self.names, *ROLES, BASE):
            raise KeyError(f"there is no adapter {name!r}, only {sorted(self.names)}")
        before = self.active
        self._activate(name)
        try:
            yield
        finally:
            self._activate(before)

    def train(self, *names: str) -> None:
        """Let these adapters and their heads receive gradients, in float32, and nothing else."""
        self.trained = names
        self.causal_lm.requires_grad_(False)
        self.heads.requires_grad_(False)
        for name in names:
            for parameter in self.parameters(name):
                parameter.data = parameter.data.float()
                parameter.requires_grad_(True)

    def _activate(self, name: str) -> None:
        # Set on each layer, as PEFT's own set_adapter flips requires_grad too. A layer that does not carry this
        # adapter, which for BASE is every layer, hands on what its base layer computes.
        self.active = name
        for layer in self.lora_layers:
            layer._active_adapter = [name]
            layer._disable_adapters = False

    # Files

    def save(self, name: str, folder: Path) -> None:
        """Write the adapter in plain PEFT format; one with a head as a sequence classifier's."""
        # False: PEFT would otherwise ask the Hub whether the embedding has been resized.
        state = get_peft_model_state_dict(self.peft_model, adapter_name=name, save_embedding_layers=False)
        config = self.config(name)
        config.inference_mode = True
        config.base_model_name_or_path = self.causal_lm.name_or_path
        if name in self.heads:
            state[SCORE_KEY] = self.head(name).weight
            config.task_type, config.modules_to_save = TaskType.SEQ_CLS, ["score"]
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {key: value.detach().float().cpu().contiguous() for key, value in state.items()}
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        if self.base is not None:
            self.base.save(folder)
        config.save_pretrained(str(folder))

    def load(self, name: str, folder: Path, with_head: bool = False, allow_other_base: bool = False) -> None:
        """Read what `save` or plain PEFT wrote, in place of what the adapter and its head were.

        Args:
            with_head: the adapter is to score, so its file must hold a head; those of SCALAR_ROLES always must.
            allow_other_base: also one that says it was trained on another model.

        Raises:
            UserError: it is no plain LoRA adapter, does not fit the model, was trained on another, or lacks the head.
        """
        config, state = read_adapter(folder)
        if self.base is not None and not allow_other_base:
            check_base(folder, self.base)
        self._check_rank(f"{folder}: r", max(config.r, *(config.rank_pattern or {}).values(), 0))
        score = state.pop(SCORE_KEY, None)
        if score is None and (with_head or name in SCALAR_ROLES):
            raise UserError(f"{folder}: the adapter has no score head ({SCORE_KEY}); train one with lorarlhf reward")
        if name not in self.names or not same_shape(config, self.config(name)):
            try:
                self._add(name, config)
            except _NoSuchLayersError as error:
                raise self._made_for_another(folder, str(error)) from error
            self._refuse_ends(folder)
        try:
            self._set_head(name, score)
            result: Any = set_peft_model_state_dict(self.peft_model, state, adapter_name=name)
            wrong = [*result.unexpected_keys, *(key for key in result.missing_keys if f".{name}." in key)]
        except RuntimeError as error:  # tensors of another shape
            wrong = [str(error).splitlines()[-1].strip()]
        if wrong:
            raise self._made_for_another(folder, wrong[0])

    def _made_for_another(self, folder: Path, reason: str) -> UserError:
        base = self.causal_lm.name_or_path
        return UserError(f"{folder}: the adapter was made for another model than {base}: {reason}")

    # Layers and heads

    def _matrices(self, name: str) -> Iterator[nn.ModuleDict]:
        """PEFT's dictionaries, by adapter, of A and of B, in each layer that carries this one."""
        for layer in self.lora_layers:
            for matrices in (layer.lora_A, layer.lora_B):
                if name in matrices:
                    yield matrices

    def _add(self, name: str, config: PeftLoraConfig) -> None:
        """Make the layers of an adapter, in place of those of an earlier one of this name."""
        self._check_name(name)
        self.detach(name)
        try:
            if self.peft_model is None:
                self.peft_model = get_peft_model(self.causal_lm, config, adapter_name=name)
            else:
                self.peft_model.add_adapter(name, config)
        except ValueError as error:
            raise _NoSuchLayersError(first_line(error)) from error
        self.lora_layers = [module for module in self.causal_lm.modules() if isinstance(module, LoraLayer)]
        for layer in self.lora_layers:
            if not isinstance(layer, ParamWrapper):  # what PEFT puts around the stacked experts of a mixture
                use_fused_forward(layer)
        # PEFT has activated and unfrozen what it added, and may have frozen the rest: say both anew.
        self._activate(self.active)
        self.train(*self.trained)

    def _check_name(self, name: str) -> None:
        # PEFT finds an adapter's tensors by `.name.` in their keys, and keeps them in a ModuleDict under that name.
        if name in self._taken_names or not name.isidentifier() or hasattr(nn.ModuleDict(), name):
            raise ValueError(f"an adapter cannot be called {name!r}; choose a word that no part of the model is called")

    def _check_rank(self, source: str, r: int) -> None:
        # A product of rank r has no more than that of its layer; what is beyond is memory for nothing.
        shapes = [side for module in self.causal_lm.modules() for side in _sides(module)]
        if r > max(shapes):
            raise UserError(f"{source}: {r} is more than the model's widest layer, {max(shapes)}; lower it")

    def _refuse_ends(self, source: object) -> None:
        # Log-probabilities take the head by itself, chunk by chunk, for all roles alike.
        ends = (self.causal_lm.get_input_embeddings(), self.causal_lm.get_output_embeddings())
        if any(isinstance(module, LoraLayer) for module in ends):
            raise UserError(f"{source}: the embedding and the language-model head take no adapter; leave them out")

    def _set_head(self, name: str, weight: Tensor | None) -> None:
        """Raises RuntimeError if the weight is not [1, hidden]."""
        if weight is None:
            if name in self.heads:
                del self.heads[name]
            return
        if name not in self.heads:
            self.heads[name] = deepcopy(self.heads["reward"]).requires_grad_(name in self.trained)
        self.head(name).load_state_dict({"weight": weight})


class _NoSuchLayersError(ValueError):
    """The configuration of an adapter names layers that the model does not have."""


def _linear_names(causal_lm: PreTrainedModel, layers: nn.ModuleList) -> list[str]:
    """Names of the linear modules in all layers: a hybrid model has several kinds, each with names of its own."""
    linear = {path: module for path, module in layers.named_modules() if isinstance(module, (nn.Linear, Conv1D))}
    special = {_name(path) for path, module in linear.items() if not _only_multiplies(module)}
    names = {name for name in map(_name, linear) if name not in special and _peft_takes(causal_lm, name)}
    config = PeftLoraConfig(target_modules=list(names))
    # PEFT takes some names for those that the experts of a mixture had before transformers stacked them, and would
    # adapt the stacks: in every layer, and each by making its whole sum anew in every pass.
    convert_peft_config_for_transformers(config, causal_lm, get_model_conversion_mapping(causal_lm))
    return sorted(config.target_modules or ())


def _sides(module: nn.Module) -> tuple[int, ...]:
    """in and out of a linear layer, however it is quantised; of another module nothing."""
    if isinstance(module, Conv1D):
        return (module.nx, module.nf)
    return (module.in_features, module.out_features) if isinstance(module, nn.Linear) else ()


def _name(path: str) -> str:
    """The end of a path that says which module it is: with its numbers, the one of a sequence (`ffn.0`)."""
    parts = path.split(".")
    start = max(index for index, part in enumerate(parts) if not part.isdigit())
    return ".".join(parts[start:])


@torch.no_grad()
def _only_multiplies(linear: Any) -> bool:
    """Whether a token in is a product out. The routers of some mixtures are linear layers that return their choice."""
    if type(linear).forward in PLAIN_PRODUCTS:
        return True
    try:
        product = linear(linear.weight.new_zeros(1, linear.in_features))
    except Exception:  # of any kind: it takes something else than tokens
        return False
    return isinstance(product, Tensor) and product.shape == (1, linear.out_features)


def _peft_takes(causal_lm: PreTrainedModel, name: str) -> bool:
    """Not `out_proj` of some state-space models, whose kernels read its weight past the adapter."""
    try:
        _check_lora_target_modules_mamba(PeftLoraConfig(), causal_lm, name)
    except ValueError:
        return False
    return True


@contextlib.contextmanager
def written_adapter(folder: Path) -> Iterator[Path]:
    """Yield a folder for an adapter's files, which take the places of those in `folder` together, the config last."""
    with written_into(folder, last=CONFIG) as part:
        yield part


def same_shape(a: PeftLoraConfig, b: PeftLoraConfig) -> bool:
    """Whether weights of one adapter fit into the other, and mean the same there."""
    names = ["r", "lora_alpha", "target_modules", "exclude_modules", "target_parameters", "layers_to_transform"]
    names += ["use_rslora", "rank_pattern", "alpha_pattern"]
    return all(getattr(a, name) == getattr(b, name) for name in names)
