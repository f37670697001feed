"""What a stage says of rows that it cannot take whole."""

import json

import pytest
from byte_level import make_tokenizer

from lorarlhf.data.tokenized import preference_examples, prompt_examples, scored_examples, sft_examples
from lorarlhf.data.tokenizer import prepare_tokenizer
from lorarlhf.recipe.sections import DataConfig

STAGES = {
    "sft": ("sft", sft_examples),
    "comparisons": ("preferences", preference_examples),
    "ratings": ("preferences", scored_examples),
    "prompts": ("prompts", prompt_examples),
}


@pytest.mark.parametrize(("key", "examples"), STAGES.values(), ids=STAGES)
@pytest.mark.parametrize("split", ["train", "test"])
def test_rows_left_out_for_their_length_are_counted(tmp_path, caplog, key, examples, split):
    texts = ["Why?", "When?", "The sky is blue. " * 50]
    columns = {"chosen": "No.", "rejected": "Yes."} if examples is preference_examples else {"completion": "No."}
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": text, **columns, "score": 1.0}) + "\n" for text in texts))
    config = DataConfig(**{key: str(path), f"{key}_test": str(path)}, max_length=60, max_prompt_length=50)
    tokenizer = make_tokenizer()
    prepare_tokenizer(tokenizer, 400, config)
    examples(config, tokenizer, split)
    limit = "data.max_prompt_length 50" if key == "prompts" else "data.max_length 60"
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        f"{path}: left out: 1 of 3 rows to {split} on, over {limit} tokens"
    ]
    caplog.clear()
    examples(config.model_copy(update={"max_length": 2000, "max_prompt_length": 2000}), tokenizer, split)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
