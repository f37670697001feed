"""The demo's world: its grammar accepts exactly what it produces, and its score follows the documented rule."""

import json
import random
import statistics
from itertools import product
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from lorarlhf.demo import world

DATA = Path(__file__).parents[2] / "data" / "demo"
PROMPT = "Hello. How much are the apples?"
GOOD = "Thank you for asking! The apples cost 3 dollars a box. Have a lovely day!"


def read(name: str) -> list[dict]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def prompts_of(name: str) -> set[str]:
    return {row["prompt"][0]["content"] for row in read(name)}


def test_every_prompt_is_distinct_and_parses() -> None:
    prompts = world.all_prompts()
    assert len(set(prompts)) == len(prompts) >= 600
    topics = {world.parse_prompt(prompt) for prompt in prompts}
    assert len(topics) == len(world.ITEMS) * len(world.QUESTIONS)


@pytest.mark.parametrize(
    "prompt", ["", "How much are the apples", "How much are the cars?", PROMPT + " ", " " + PROMPT]
)
def test_a_foreign_prompt_is_refused(prompt: str) -> None:
    with pytest.raises(ValueError, match="not a prompt"):
        world.gold_score(prompt, GOOD)


def test_every_answer_parses_to_the_choices_it_was_made_from() -> None:
    filled = {slot: words[-1] for slot, words in world.SLOTS.items()}
    openings = [(tone, text) for tone, texts in world.OPENINGS.items() for text in texts]
    closings = [(tone, text) for tone, texts in world.CLOSINGS.items() for text in texts]
    for kind, stances in world.ANSWERS.items():
        for stance, answers in stances.items():
            for answer in answers:
                for (opening, first), (closing, last) in product(openings, closings):
                    text = " ".join(filter(None, (first, answer.format(item="mugs", **filled), last)))
                    assert world.parse(text) == world.Parse(opening, kind, "mugs", stance, closing)


@pytest.mark.parametrize(
    "response",
    [
        "",
        "Have a lovely day!",
        GOOD + " ",
        " " + GOOD,
        GOOD + "\n",
        GOOD.replace("! The", "!  The"),
        GOOD.replace("apples", "cars"),
        GOOD.replace(" 3 ", " 33 "),
        GOOD.replace("apples", "{item}"),
        GOOD.replace("box.", "box"),
        GOOD.lower(),
        f"{GOOD} {GOOD}",
        f"{GOOD} Have a lovely day!",
        f"Thank you for asking! {GOOD}",
        "The apples cost 3 dollars a box. The apples cost 3 dollars a box.",
        "Have a lovely day! The apples cost 3 dollars a box.",
    ],
)
def test_what_the_grammar_cannot_produce_is_not_fluent_and_scores_lowest(response: str) -> None:
    assert world.parse(response) is None
    assert not world.is_fluent(response)
    assert world.gold_score(PROMPT, response) == world.LOWEST_SCORE


@pytest.mark.parametrize(
    ("response", "score"),
    [
        (GOOD, 4),
        ("Thank you for asking! The apples cost 3 dollars a box.", 3),
        ("The apples cost 3 dollars a box.", 2),
        ("Let me see. The apples cost 3 dollars a box. That is all.", 2),
        ("Not you again. The apples cost 3 dollars a box. Stop wasting my time.", 0),
        ("The price of the apples changes all the time.", 0),
        ("You can read the price of the apples yourself.", -2),
        ("The pears cost 3 dollars a box.", -1),
        ("The apples are around here somewhere.", -1),
        ("The pears are in aisle 3 on your left.", -2),
        ("You can look for the apples yourself.", -2),
        ("I am happy to help! The pears are in aisle 3 on your left. Have a lovely day!", 0),
        ("Not you again. You can look for the pears yourself. Now leave me alone.", -4),
    ],
)
def test_gold_score_follows_the_rule(response: str, score: float) -> None:
    assert world.gold_score(PROMPT, response) == score


def test_the_base_assistant_is_fluent_mixed_and_repeatable() -> None:
    prompts = world.all_prompts()
    responses = [world.sample_response(prompt, random.Random(f"{prompt}")) for prompt in prompts]
    assert responses == [world.sample_response(prompt, random.Random(f"{prompt}")) for prompt in prompts]
    assert all(map(world.is_fluent, responses))
    assert len(set(responses)) > 0.9 * len(responses)
    scores = [world.gold_score(*pair) for pair in zip(prompts, responses, strict=True)]
    assert {min(scores), max(scores)} == {world.LOWEST_SCORE, world.HIGHEST_SCORE}
    assert abs(statistics.mean(scores)) < 0.5
    assert 0.03 < scores.count(world.HIGHEST_SCORE) / len(scores) < 0.15


def test_held_out_prompts_ask_what_no_training_prompt_asks() -> None:
    def topics(*names: str) -> set[world.Question]:
        return {world.parse_prompt(prompt) for name in names for prompt in prompts_of(name)}

    train = topics("preferences.jsonl", "prompts.jsonl")
    assert not train & topics("prompts_test.jsonl", "preferences_test.jsonl")
    assert not topics("prompts_test.jsonl") & topics("preferences_test.jsonl")
    assert {topic.item for topic in train} == set(world.ITEMS)
    assert {topic.kind for topic in train} == set(world.QUESTIONS)


@pytest.mark.parametrize(("name", "rows"), [("preferences.jsonl", 6000), ("preferences_test.jsonl", 500)])
def test_a_tenth_of_the_labels_is_flipped_and_none_is_a_tie(name: str, rows: int) -> None:
    pairs = read(name)
    margins = []
    for pair in pairs:
        assert set(pair) == {"prompt", "chosen", "rejected"}
        prompt = pair["prompt"][0]["content"]
        chosen, rejected = (world.gold_score(prompt, pair[side][0]["content"]) for side in ("chosen", "rejected"))
        margins.append(chosen - rejected)
    assert len(pairs) == rows
    assert 0 not in margins
    assert sum(margin < 0 for margin in margins) == 0.1 * rows


def test_demonstrations_are_the_best_there_is() -> None:
    held_out = prompts_of("prompts_test.jsonl") | prompts_of("preferences_test.jsonl")
    for row in read("sft.jsonl"):
        (asked, answered) = row["messages"]
        assert (asked["role"], answered["role"]) == ("user", "assistant")
        assert asked["content"] not in held_out
        assert world.gold_score(asked["content"], answered["content"]) == world.HIGHEST_SCORE


def test_the_tokenizer_gives_back_every_text_byte_for_byte() -> None:
    tokenizer = Tokenizer.from_file(str(DATA / "model" / "tokenizer.json"))
    rng = random.Random(0)
    texts = world.all_prompts() + [world.sample_response(prompt, rng) for prompt in world.all_prompts()]
    for text in [*texts, "  Spaces , 'quotes' \n and ünïcode 你 "]:
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert max(len(tokenizer.encode(text)) for text in texts) < 40
    # An item is one token, so copying it from the question is one step for a small model.
    assert all(len(tokenizer.encode(f" {item}")) == 1 for item in world.ITEMS)


def test_the_demo_stays_small() -> None:
    assert sum(path.stat().st_size for path in DATA.rglob("*") if path.is_file()) < 5_000_000
