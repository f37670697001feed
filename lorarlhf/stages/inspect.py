"""What `lorarlhf data inspect` needs of a model: its tokens."""

from __future__ import annotations

from lorarlhf.backbone.load import load_tokenizer
from lorarlhf.data.inspect import Measure
from lorarlhf.data.rows import Completion, Prompt, turns
from lorarlhf.data.tokenize import encode_completion
from lorarlhf.data.tokenizer import end_of_turn, prepare_tokenizer, wraps_text
from lorarlhf.recipe.sections import DataConfig, ModelConfig


def tokens_of(model: str) -> Measure:
    """Lengths in a base model's tokens, as training will see them. Raises UserError if it cannot be read."""
    data = DataConfig()
    tokenizer = load_tokenizer(ModelConfig(name=model))
    prepare_tokenizer(tokenizer, len(tokenizer) + 1, data)
    end_id, wraps = end_of_turn(tokenizer), wraps_text(data, tokenizer)

    def measure(prompt: Prompt, completion: Completion) -> tuple[int, int]:
        if wraps:
            prompt, completion = turns(prompt, "user"), turns(completion, "assistant")
        before, response = encode_completion(tokenizer, prompt, completion, end_id)
        return len(before), len(response)

    return measure
