"""The base model, and the LoRA adapters on it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from lorarlhf.recipe.sections.section import PositiveInt, Section

Role = Literal["policy", "reference", "reward", "critic"]
Quantization = Literal["nf4", "int8", "none"]
TopLayers = Annotated[float, Field(gt=0, le=1)]
TOP_LAYERS = 0.5  # of reward model and critic; docs/reward-model.md has the ablation


class ModelConfig(Section):
    """The frozen base model and how it is held in memory."""

    name: str = Field(min_length=1)
    """The base model: a Hub id, a local folder, or `shipped:demo/model`."""

    revision: str | None = None
    """Branch, tag or commit of the model on the Hub; null is its main branch. Set it so that a run can be repeated."""

    quantization: Quantization = "nf4"
    """How the linear layers are held: `nf4` in 4 bits, `int8` in 8, `none` as computed. Where the weights fit, `none`
    loses nothing; small models lose most by `nf4`."""

    double_quant: bool = True
    """With `nf4`, whether the scales are quantised too: saves about 0.4 bits a weight and costs next to nothing."""

    quantize_head: bool = False
    """Whether the output layer is quantised too: saves memory with a large vocabulary. Not for models whose output
    layer is their embedding, and not for `lorarlhf sft` of a mixture of experts."""

    compute_dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """What is computed in. `auto` is bfloat16 where the hardware is fast at it, else float32, which takes more memory
    and is several times slower on a GPU."""

    attn_implementation: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """The attention kernel. `auto` takes the one that suits; `flash_attention_2` needs a CUDA GPU and the package
    flash-attn."""

    trust_remote_code: bool = False
    """Whether Python code that comes with the model may run on this machine. Only for models whose authors you
    trust."""


class LoraOverride(Section):
    """What one role does differently; a key left out is taken from `lora`."""

    r: PositiveInt | None = None
    """Rank of this role's adapter; null takes `lora.r`."""

    alpha: PositiveInt | None = None
    """Scale of this role's adapter; null takes `lora.alpha`."""

    target_modules: Literal["all-linear"] | list[str] | None = None
    """The layers that carry this role's adapter; null takes `lora.target_modules`."""


class ScalarLoraOverride(LoraOverride):
    """The same for a role that gives one number, not a token: the lower layers can do without an adapter."""

    top_layers: TopLayers | None = None
    """Share of the layers, from the top, that carry the adapter; null is 0.5. Lower saves memory and time, as the
    layers below are computed once for several roles; 1 for every layer."""


class LoraShape(Section):
    """Rank, scale and place of one adapter."""

    r: PositiveInt
    """Rank."""

    alpha: PositiveInt
    """Scale: the update is multiplied by `alpha / r`."""

    target_modules: Literal["all-linear"] | list[str]
    """The layers that carry it."""

    top_layers: TopLayers = 1.0
    """Share of the layers, from the top, that carry it."""

    def layer_count(self, layers: int) -> int:
        """How many of a model's layers, counted from the top, carry the adapter; at least one."""
        return max(1, round(self.top_layers * layers))


class LoraConfig(Section):
    """LoRA adapters (Hu et al. 2021). The update of a weight is `alpha / r * B @ A`."""

    r: PositiveInt = 16
    """Rank of the adapters. Higher can learn more and takes more memory; 8 to 32 is enough for preferences."""

    alpha: PositiveInt = 32
    """Scale of the adapters, which is divided by `r`: twice the rank is usual. Learning rates assume it, so change them
    together."""

    target_modules: Literal["all-linear"] | list[str] = "all-linear"
    """The layers that carry adapters: `all-linear` for all but the output layer, or names such as [q_proj, v_proj].
    Fewer take less memory and learn less."""

    policy: LoraOverride = LoraOverride()
    """What the policy's adapter does differently."""

    reward: ScalarLoraOverride = ScalarLoraOverride()
    """What the reward model's adapter does differently."""

    critic: ScalarLoraOverride = ScalarLoraOverride()
    """What the critic's adapter does differently."""

    def for_role(self, role: Literal["policy", "reward", "critic"]) -> LoraShape:
        """The settings of one role, its own where it has them."""
        override: LoraOverride | ScalarLoraOverride = getattr(self, role)
        top_layers = getattr(override, "top_layers", None) or (1.0 if role == "policy" else TOP_LAYERS)
        return LoraShape(
            r=override.r or self.r,
            alpha=override.alpha or self.alpha,
            target_modules=override.target_modules or self.target_modules,
            top_layers=top_layers,
        )
