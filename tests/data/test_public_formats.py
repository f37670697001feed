"""The public data sets that people use, each recognised from a row of its real schema, with values written here."""

import math

import pytest
from turns import BAD, GOOD, HI, bot, system, user

from lorarlhf.data.formats import DEMONSTRATIONS, PREFERENCES, PROMPTS, recognise
from lorarlhf.data.rows import BadRow, Demonstration, Preference

ULTRAFEEDBACK_H4 = {
    "prompt": "Hi",
    "prompt_id": "a1",
    "chosen": [*HI, *GOOD],
    "rejected": [*HI, *BAD],
    "messages": [*HI, *GOOD],
    "score_chosen": 8.5,
    "score_rejected": 4.0,
}

TLDR = {
    "info": {
        "id": "t3_1",
        "post": "My cat left.",
        "title": "Cat gone",
        "subreddit": "cats",
        "site": None,
        "article": None,
    },
    "summaries": [
        {"text": " Cat left", "policy": "sup4", "note": ""},
        {"text": "A cat is lost.", "policy": "ref", "note": ""},
    ],
    "choice": 1,
    "worker": "w1",
    "batch": "batch3",
    "split": "train",
    "extra": {"confidence": 8},
}

SHP = {
    "post_id": "p1",
    "domain": "askculinary_train",
    "upvote_ratio": 0.99,
    "history": "How long do eggs keep?",
    "c_root_id_A": "c1",
    "c_root_id_B": "c2",
    "created_at_utc_A": 1,
    "created_at_utc_B": 2,
    "score_A": 3,
    "score_B": 12,
    "human_ref_A": "Days.",
    "human_ref_B": "Three weeks.",
    "labels": 0,
    "seconds_difference": 1.0,
    "score_ratio": 4.0,
}

HELPSTEER2 = {
    "split": "train",
    "prompt": "Hi",
    "response_1": "Hello!",
    "response_2": "What?",
    "preference_strength": -2,
    "preference_statement": "Response 1 is better.",
    "preference_elaboration": "It greets.",
    "three_most_similar_preferences": [],
    "all_preferences_unprocessed": [],
}

HELPSTEER3 = {
    "domain": "general",
    "language": "english",
    "context": [*HI, *GOOD, user("A joke?")],
    "response1": "No.",
    "response2": "Knock knock.",
    "overall_preference": 3,
    "individual_preference": [{"score": 3, "reasoning": "r", "feedback1": "f", "feedback2": "g"}],
}

SAFE = {
    "prompt": "Hi",
    "response_0": "What?",
    "response_1": "Hello!",
    "prompt_source": "s",
    "response_0_source": "m",
    "response_1_source": "m",
    "is_response_0_safe": True,
    "is_response_1_safe": True,
    "response_0_severity_level": 0,
    "better_response_id": 1,
    "safer_response_id": 0,
}

ARENA_55K = {
    "id": 1,
    "model_a": "m",
    "model_b": "n",
    "prompt": '["Hi", "And you?"]',
    "response_a": '["What?", "Go."]',
    "response_b": '["Hello!", "Fine."]',
    "winner_model_a": 0,
    "winner_model_b": 1,
    "winner_tie": 0,
}
TWO_TURNS = ([bot("Hello!"), user("And you?"), bot("Fine.")], [bot("What?"), user("And you?"), bot("Go.")])

ARENA_100K = {
    "question_id": "q",
    "model_a": "m",
    "model_b": "n",
    "winner": "model_b",
    "conversation_a": [{"content": "Hi", "role": "user"}, {"content": "What?", "role": "assistant"}],
    "conversation_b": [{"content": "Hi", "role": "user"}, {"content": "Hello!", "role": "assistant"}],
    "turn": 1,
    "anony": True,
    "language": "English",
    "tstamp": 1.0,
}

ORCA = {"system": "Be kind.", "question": "Hi", "chosen": "Hello!", "rejected": "What?"}

ARGILLA = {
    "source": "sharegpt",
    "prompt": "Hi",
    "chosen": [*HI, *GOOD],
    "chosen-rating": 5.0,
    "chosen-model": "m",
    "rejected": [*HI, *BAD],
    "rejected-rating": 2.5,
    "rejected-model": "n",
}

REWARD_BENCH = {
    "prompt": "Hi",
    "chosen": "Hello!",
    "chosen_model": "m",
    "rejected": "What?",
    "rejected_model": "n",
    "subset": "alpacaeval-easy",
    "id": 0,
}

FACTORY = {
    "conversations": [{"from": "human", "value": "Hi"}],
    "chosen": {"from": "gpt", "value": "Hello!"},
    "rejected": {"from": "gpt", "value": "What?"},
}

PANDALM = {
    "idx": 0,
    "motivation_app": "x",
    "cmp_key": "m_n",
    "instruction": "Hi",
    "input": "",
    "response1": "What?",
    "response2": "Hello!",
    "annotator1": 2,
    "annotator2": 1,
    "annotator3": 2,
}


@pytest.mark.parametrize(
    ("name", "row", "expected"),
    [
        (
            "HH-RLHF transcripts",
            {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello!", "rejected": "\n\nHuman: Hi\n\nAssistant: What?"},
            Preference(HI, GOOD, BAD),
        ),
        (
            "conversations with score_chosen and score_rejected",
            {key: ULTRAFEEDBACK_H4[key] for key in ("chosen", "rejected", "score_chosen", "score_rejected")},
            Preference(HI, GOOD, BAD, 4.5),
        ),
        ("conversations with score_chosen and score_rejected", ULTRAFEEDBACK_H4, Preference(HI, GOOD, BAD, 4.5)),
        (
            "comparisons of summaries (OpenAI)",
            TLDR,
            Preference(
                "SUBREDDIT: r/cats\n\nTITLE: Cat gone\n\nPOST: My cat left.\n\nTL;DR:",
                " A cat is lost.",
                " Cat left",
                annotators=("w1",),
            ),
        ),
        (
            "comparisons of summaries (OpenAI)",
            TLDR | {"info": {"article": "Rain.", "title": "News", "post": None, "subreddit": None}, "choice": 0},
            Preference("Article:\n\nRain.\n\nTL;DR:", " Cat left", " A cat is lost.", annotators=("w1",)),
        ),
        (
            "Stanford Human Preferences",
            SHP,
            Preference([user("How long do eggs keep?")], [bot("Three weeks.")], [bot("Days.")], math.log(4)),
        ),
        ("HelpSteer2 preferences", HELPSTEER2, Preference(HI, GOOD, BAD, 2.0)),
        (
            "HelpSteer2 preferences",
            HELPSTEER2
            | {
                "prompt": "Hi\n\n<extra_id_1>Assistant\nHello!\n\n<extra_id_1>User\nA joke?",
                "preference_strength": 1,
            },
            Preference([*HI, *GOOD, user("A joke?")], BAD, GOOD, 1.0),
        ),
        (
            "HelpSteer3 preferences",
            HELPSTEER3,
            Preference([*HI, *GOOD, user("A joke?")], [bot("Knock knock.")], [bot("No.")], 3.0),
        ),
        ("PKU-SafeRLHF (the more helpful response)", SAFE, Preference(HI, GOOD, BAD)),
        ("Chatbot Arena, turns as JSON lists", ARENA_55K, Preference(HI, *TWO_TURNS)),
        (
            "Chatbot Arena, turns as JSON lists",
            {key: str(value) for key, value in ARENA_55K.items()} | {"winner_model_a": "1", "winner_model_b": "0"},
            Preference(HI, *TWO_TURNS[::-1]),
        ),
        ("Chatbot Arena, two conversations", ARENA_100K, Preference(HI, GOOD, BAD)),
        (
            "Orca pairs: system, question and two answers",
            ORCA,
            Preference([system("Be kind."), *HI], GOOD, BAD),
        ),
        ("Orca pairs: system, question and two answers", ORCA | {"system": ""}, Preference(HI, GOOD, BAD)),
        ("conversations with chosen-rating and rejected-rating", ARGILLA, Preference(HI, GOOD, BAD, 2.5)),
        (
            "conversations, with or without a prompt",
            {"chosen": [*HI, *GOOD], "rejected": [*HI, *BAD], "source": "magpie"},
            Preference(HI, GOOD, BAD),
        ),
        ("RewardBench: a user's message and two answers", REWARD_BENCH, Preference(HI, GOOD, BAD)),
        (
            "Alpaca style pairs",
            {"instruction": "Hi", "input": "", "output": "Hey", "chosen": "Hello!", "rejected": "What?"},
            Preference(HI, GOOD, BAD),
        ),
        ("LLaMA-Factory style pairs", FACTORY, Preference(HI, GOOD, BAD)),
        (
            "LLaMA-Factory style pairs",
            FACTORY | {"system": "Be kind.", "chosen": "Hello!", "rejected": "What?"},
            Preference([system("Be kind."), *HI], GOOD, BAD),
        ),
        (
            "PandaLM: votes of several annotators",
            PANDALM,
            Preference(
                HI,
                GOOD,
                BAD,
                annotators=("annotator1", "annotator3"),
                votes=(("annotator1", 1), ("annotator2", -1), ("annotator3", 1)),
            ),
        ),
        (
            "text pairs with a prompt",
            {"prompt": "a", "chosen": "b", "rejected": "c", "tie": False, "annotators": ["x"]},
            Preference("a", "b", "c", annotators=("x",)),
        ),
    ],
)
def test_one_pair_a_row(name, row, expected):
    form = recognise(row, PREFERENCES)
    assert form.name == name
    assert list(form.convert(row)) == [expected]
    assert list(recognise(row, PROMPTS).convert(row)) == [expected.prompt]
    assert list(recognise(row, DEMONSTRATIONS).convert(row)) == [Demonstration(expected.prompt, expected.chosen)]


@pytest.mark.parametrize(
    "row",
    [
        HELPSTEER2 | {"preference_strength": 0},
        HELPSTEER3 | {"overall_preference": 0},
        ARENA_55K | {"winner_model_b": 0, "winner_tie": 1},
        ARENA_100K | {"winner": "tie"},
        ARENA_100K | {"winner": "tie (bothbad)"},
        PANDALM | {"annotator1": 0},
        PANDALM | {"annotator1": 0, "annotator2": 0},
        {"prompt": "a", "chosen": "b", "rejected": "c", "tie": True},
        {"prompt": "a", "chosen": "b", "rejected": "c", "tie": "true"},
        {"prompt": "a", "chosen": "b", "rejected": "b", "tie": True},
        {"prompt": HI, "chosen": GOOD, "rejected": BAD, "tie": 1},
    ],
)
def test_ties(row):
    [pair] = recognise(row, PREFERENCES).convert(row)
    assert pair.tie
    assert not pair.margin
    assert list(recognise(row, PROMPTS).convert(row)) == [pair.prompt]
    assert list(recognise(row, DEMONSTRATIONS).convert(row)) == []


@pytest.mark.parametrize(
    ("good", "bad", "reason"),
    [
        (TLDR, {"choice": 2}, "choice is not one of 0, 1"),
        (TLDR, {"choice": None}, "choice is missing"),
        (TLDR, {"summaries": [{"text": "a"}]}, "summaries does not hold two"),
        (TLDR, {"summaries": [{"text": "a"}, {"text": ""}]}, "text is empty"),
        (TLDR, {"summaries": [{"text": "a"}, {"text": " a"}]}, "chosen and rejected are identical"),
        (SHP, {"labels": "A"}, "labels is not one of 1, 0"),
        (SHP, {"human_ref_A": ""}, "human_ref_A is empty"),
        (HELPSTEER2, {"preference_strength": 4}, "preference_strength is not between -3 and 3"),
        (HELPSTEER2, {"preference_strength": None}, "preference_strength is missing"),
        (SAFE, {"better_response_id": True}, "better_response_id is not one of 0, 1"),
        (ARENA_55K, {"response_a": '["What?", null]'}, "response_a has an entry that is empty or not text"),
        (ARENA_55K, {"response_a": '["What?"]'}, "prompt, response_a and response_b differ in length"),
        (ARENA_55K, {"response_a": "What?"}, "response_a is text, not a JSON list"),
        (
            ARENA_55K,
            {"winner_tie": 1},
            "winner_model_a, winner_model_b and winner_tie do not name one outcome",
        ),
        (ARENA_100K, {"winner": "model_c"}, "winner is not one of model_a, model_b, tie, tie (bothbad), both_bad"),
        (FACTORY, {"chosen": {"from": "bot", "value": "a"}}, "chosen has a message whose from is not one of human,"),
        (FACTORY, {"chosen": {"from": "gpt", "value": ""}}, "chosen has a message whose value is empty or not text"),
        (PANDALM, {"annotator2": 3}, "annotator2 is not one of 0, 1, 2"),
        (ORCA, {"rejected": "Hello!"}, "chosen and rejected are identical"),
    ],
)
def test_bad_rows(good, bad, reason):
    form = recognise(good, PREFERENCES)
    with pytest.raises(BadRow) as raised:
        list(form.convert(good | bad))
    assert str(raised.value).startswith(reason)
