"""Where examples come from."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator

from lorarlhf.recipe.sections.section import Fraction, PositiveInt, Section
from lorarlhf.recipe.sections.source import Sources


def _can_be_set(name: str) -> str:
    if not name.isidentifier() or name in ("messages", "tools", "documents", "add_generation_prompt"):
        raise ValueError(f"a chat template takes no {name} from a recipe; name one of its own variables")
    return name


TemplateVariable = Annotated[str, AfterValidator(_can_be_set)]
DataKey = Literal["sft", "preferences", "prompts"]
Column = Literal["prompt", "chosen", "rejected", "margin", "tie", "completion", "score", "messages"]


class DataConfig(Section):
    """Where examples come from. A source is a Hub id, the path of a file whose ending `lorarlhf.data.endings` knows, or
    a folder that `datasets` can read; a mapping where more is to be said of it (`Source`); or a list of these."""

    sft: Sources | None = None
    """Source of the demonstrations that `sft` learns from. Of comparisons it takes the better side."""

    sft_test: Sources | None = None
    """Source of the demonstrations that `sft` is tested on; null takes them from `sft`, see `test_split`."""

    preferences: Sources | None = None
    """Source of the comparisons (or ratings) that the reward model learns from."""

    preferences_test: Sources | None = None
    """Source of the comparisons that the reward model is tested on; null takes them from `preferences`."""

    prompts: Sources | None = None
    """Source of the prompts that `ppo` answers; null takes those of `preferences`. Comparisons and demonstrations have
    prompts too."""

    prompts_test: Sources | None = None
    """Source of the prompts that the policy is evaluated on; null takes them from `prompts`."""

    train_split: str = "train"
    """Name of the split to train on, in a Hub data set or a saved folder that has several."""

    test_split: str = "test"
    """Name of the split to test on, where no `..._test` is named and the data set has one of this name."""

    test_size: Fraction = 0.05
    """Share of the prompts held out where there is neither `..._test` nor `test_split`, by a hash of their text: the
    same in every run. Raise it for small data; 0 holds out none, which leaves nothing to evaluate on."""

    max_examples: PositiveInt | None = None
    """The most examples that a stage trains on, drawn at random from those that are of use and not too long; null takes
    all. Set it for a shorter run on large data."""

    eval_examples: PositiveInt | None = None
    """The most held-out examples that a stage is tested on, drawn likewise; null takes all. Set it where evaluations
    take too long."""

    chat_template: str | None = None
    """Path of a Jinja chat template to use instead of the model's own; null keeps that."""

    chat_template_kwargs: dict[TemplateVariable, Any] = {}
    """Values for the chat template's own variables, as {enable_thinking: false} for Qwen3."""

    wrap_text: Literal["auto", "always", "never"] = "auto"
    """Whether plain text becomes turns of a conversation: `auto` does it for models with a chat template. `never` is
    for text that is to be continued, though the model has one."""

    special_tokens: Literal["escape", "allow"] = "escape"
    """What text that spells a special token, as <|im_end|>, is read as: `escape` as text, `allow` as the token. `allow`
    is for data that was written with tokens on purpose."""

    max_prompt_length: PositiveInt = 512
    """The most tokens of a prompt of `ppo`; longer ones are left out and counted, not cut. With `ppo.response_length`
    it says how much memory a rollout takes."""

    max_length: PositiveInt = 1024
    """The most tokens of a prompt with its response in `sft` and `reward`; longer ones are left out and counted. Lower
    it where memory is short; at least `max_prompt_length` + `ppo.response_length`, so that the reward model knows such
    lengths."""

    on_bad_row: Literal["error", "skip"] = "error"
    """What happens at a row that cannot be used: `error` stops and names it, `skip` leaves it out and counts it."""

    ties: Literal["drop", "keep"] = "drop"
    """What becomes of comparisons that neither side won: left out, or learnt as equal. None is ever tested on."""

    columns: dict[Column, str] = {}
    """Names of columns that are called otherwise in your data, as {prompt: question, chosen: better}. Of such data no
    other columns are read."""
