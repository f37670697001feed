"""A model like Gemma from rows to scores: its turns end with another token than eos.

It is the demo's model with two tokens renamed. What was eos, and what this model ends its answers with, is
`<end_of_turn>`; a token that no answer holds is eos now. So whatever the demo's tokenizer makes of a row is right here.
"""

import shutil
from dataclasses import replace

import pytest
import torch
from demo_runs import DEMO, small_recipe
from torch.testing import assert_close

from lorarlhf.backbone.batch import TokenBatch
from lorarlhf.backbone.load import load_backbone
from lorarlhf.data.tokenized import preference_examples, prompt_examples, sft_examples
from lorarlhf.generation.sample import Rollout
from lorarlhf.rl.score import ScoringPasses, response_scorer
from lorarlhf.run import Run
from lorarlhf.stages.reward import train_reward

END, EOS = 2, 3  # in the demo's own tokenizer <|eos|> and <|system|>


@pytest.fixture(scope="module")
def like_gemma(tmp_path_factory):
    """Folder of the model."""
    folder = tmp_path_factory.mktemp("gemma") / "model"
    shutil.copytree(DEMO / "model", folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        path = folder / name
        text = path.read_text(encoding="utf-8").replace("eos_token }}", "'<end_of_turn>' }}")
        if name == "tokenizer.json":
            text = text.replace("<|eos|>", "<end_of_turn>").replace("<|system|>", "<eos>")
        path.write_text(text.replace("<|eos|>", "<eos>"), encoding="utf-8")
    path = folder / "generation_config.json"
    path.write_text(path.read_text().replace('"eos_token_id": 2', f'"eos_token_id": [{EOS}, {END}]'))
    return folder


@pytest.fixture
def recipe(tmp_path, like_gemma):
    return small_recipe(tmp_path, f"model.name={like_gemma}")


def test_rows_end_as_the_model_ends_its_answers(tmp_path, recipe):
    backbone, demo = load_backbone(recipe.model), load_backbone(small_recipe(tmp_path).model)
    assert (backbone.tokenizer.eos_token_id, backbone.end_id, backbone.stop_ids) == (EOS, END, [END, EOS])
    assert (demo.tokenizer.eos_token_id, demo.end_id, demo.stop_ids) == (END, END, [END])
    for make in (
        lambda tokenizer: preference_examples(recipe.data, tokenizer, "train").dataset,
        lambda tokenizer: sft_examples(recipe.data, tokenizer, "train").dataset,
        lambda tokenizer: [example.ids for example in prompt_examples(recipe.data, tokenizer, "train")],
    ):
        assert list(make(backbone.tokenizer)) == list(make(demo.tokenizer))
    row = sft_examples(recipe.data, backbone.tokenizer, "train").dataset[0]["input_ids"]
    assert backbone.tokenizer.decode(row).endswith("<end_of_turn>")


def test_the_choice_is_said_at_loading(recipe, caplog):
    load_backbone(recipe.model)
    assert [record.message for record in caplog.records] == [
        "responses end with <end_of_turn>, as turns of the chat template do, not with eos <eos>"
    ]


@pytest.mark.parametrize("stop", [END, EOS])
def test_a_response_is_scored_as_if_it_had_stopped_as_the_rows_do(tmp_path, recipe, stop):
    backbone = load_backbone(recipe.model)
    train_reward(recipe, Run(tmp_path / "run"), backbone=backbone)
    rows = preference_examples(recipe.data, backbone.tokenizer, "test").dataset["chosen_ids"][:4]
    limit = len(rows[0])  # longer ones are cut off there
    finished = torch.tensor([len(row) <= limit for row in rows])
    assert set(finished.tolist()) == {True, False}
    batch = TokenBatch.from_lists([row[:5] for row in rows], [row[5:limit] for row in rows])
    tokens = batch.tokens.clone()
    tokens[finished, batch.lengths[finished] - 1] = stop
    rollout = Rollout(replace(batch, tokens=tokens), torch.empty(0), torch.empty(0), finished)

    passes = ScoringPasses(backbone, 1.0, 4096)
    score = response_scorer(passes, 1.0, [])
    ref_logprobs, trunk = passes.reference(rollout.sequences)
    assert trunk is not None
    assert_close(ref_logprobs, passes.logprobs("reference", rollout.sequences)[0])  # of what was drawn
    backbone.copy_role("reward", "critic")
    assert_close(passes.values(rollout.sequences, trunk), passes.values(rollout.sequences, None))
    whole = batch.tokens.clone()
    whole[torch.arange(4), batch.lengths - 1] = backbone.end_id  # of those that were cut, too
    expected = passes.scores(replace(batch, tokens=whole))
    assert_close(score(rollout, [None] * 4, None), expected)
    assert_close(score(rollout, [None] * 4, trunk), expected)
    otherwise = (passes.scores(rollout.sequences) - expected).abs() > 1e-3
    assert otherwise.tolist() == (~finished | (stop != END)).tolist()
