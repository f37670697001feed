"""Judges: verdicts from scores and from what a language model says, in both orders."""

import threading
from pathlib import Path

import pytest

from lorarlhf.errors import UserError
from lorarlhf.evaluation.judge import QUESTION, ModelJudge, ScoringJudge, Verdict, judged, question, read_verdict
from lorarlhf.intervals import wilson

PROMPTS = ["one?", [{"role": "user", "content": "two?"}], "three?"]


def by_length(prompts, texts):
    return [float(len(text)) for text in texts]


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("A is right.\nVerdict: A", 1.0),
        ("**Verdict:** B", 0.0),
        ("verdict: Tie.", 0.5),
        ("<think>Verdict: A\n</think>\nNo.\n\nVerdict: B\n", 0.0),
        ("B", 0.0),
        ("  tie\n", 0.5),
        ("Verdict: A good one of each.", None),
        ("Both are fine.", None),
        ("", None),
    ],
)
def test_the_last_verdict_counts(answer, verdict):
    assert read_verdict(answer) == verdict


def test_higher_scores_win_and_equal_ones_tie():
    judge = ScoringJudge("length", by_length)
    verdicts = judge.compare(PROMPTS, ["aa", "b", "cc"], ["a", "bb", "dd"])
    assert verdicts == [Verdict(1.0, (2.0, 1.0)), Verdict(0.0, (1.0, 2.0)), Verdict(0.5, (2.0, 2.0))]


def test_a_model_that_scores_is_asked_once_and_about_nothing_twice():
    calls = []

    def score(prompts, texts):
        calls.append(list(zip(map(str, prompts), texts, strict=True)))
        return by_length(prompts, texts)

    figures = judged(
        ScoringJudge("length", score), PROMPTS, ["aa", "b", "cc"], {"sft": ["a", "bb", "dd"], "base": ["a", "b", ""]}
    )
    [asked] = calls
    assert len(set(asked)) == len(asked) == 7  # three of the policy's, three others, and one new one of the base's
    won = wilson(0.5, 3)
    assert figures == {
        "name": "length",
        "against": {
            "sft": {
                "win_rate": 0.5,
                "win_rate_interval": [won.low, won.high],
                "ties": 1,
                "unread": 0,
                "score": pytest.approx(5 / 3),
                "score_against": pytest.approx(5 / 3),
            },
            "base": {
                "win_rate": pytest.approx(2.5 / 3),
                "win_rate_interval": [wilson(2.5 / 3, 3).low, wilson(2.5 / 3, 3).high],
                "ties": 1,
                "unread": 0,
                "score": pytest.approx(5 / 3),
                "score_against": pytest.approx(2 / 3),
            },
        },
    }


def sides(asked):
    a, b = (asked.split(f"<response_{name}>\n")[1].split(f"\n</response_{name}>")[0] for name in "ab")
    return a, b


def test_both_orders_are_asked_and_a_favoured_place_wins_nothing():
    questions, lock = [], threading.Lock()

    def longer_or_a(asked):
        with lock:
            questions.append(sides(asked))
        a, b = sides(asked)
        return "Verdict: " + ("A" if len(a) >= len(b) else "B")

    verdicts = ModelJudge("longer", longer_or_a).compare(PROMPTS, ["aa", "b", "cc"], ["a", "bb", "dd"])
    assert [verdict.preference for verdict in verdicts] == [1.0, 0.0, 0.5]
    assert sorted(questions) == sorted([("aa", "a"), ("a", "aa"), ("b", "bb"), ("bb", "b"), ("cc", "dd"), ("dd", "cc")])


@pytest.mark.parametrize(
    ("straight", "turned", "verdict"),
    [
        ("Verdict: A", "Verdict: B", Verdict(1.0)),
        ("Verdict: B", "Verdict: A", Verdict(0.0)),
        ("Verdict: A", "Verdict: A", Verdict(0.5)),
        ("Verdict: tie", "Verdict: tie", Verdict(0.5)),
        ("Verdict: A", "Verdict: tie", Verdict(0.5)),
        ("Verdict: A", "well", Verdict(0.5, unread=1)),
    ],
)
def test_disagreement_counts_half(straight, turned, verdict):
    judge = ModelJudge("two minds", lambda asked: straight if sides(asked)[0] == "x" else turned)
    assert judge.compare(["?"], ["x"], ["y"]) == [verdict]


def test_the_same_response_is_a_tie_that_is_not_asked_about():
    judge = ModelJudge("none", lambda asked: pytest.fail("asked"))
    assert judge.compare(["?"], ["x"], ["x"]) == [Verdict(0.5)]


def test_a_model_that_gives_no_verdict_is_no_judge():
    judge = ModelJudge("chatter", lambda asked: "Who can say?")
    with pytest.raises(UserError, match=r"chatter: none of its 2 answers ends with a verdict"):
        judge.compare(["?", "!"], ["x", "z"], ["y", "z"])


def test_an_error_ends_the_questions():
    asked = []

    def fail(text):
        asked.append(text)
        raise UserError("gone")

    with pytest.raises(UserError, match="gone"):
        ModelJudge("gone", fail).compare(["?"] * 200, ["x"] * 200, ["y"] * 200)
    assert len(asked) < 200


def test_the_documentation_shows_what_is_asked():
    page = Path(__file__).parents[2] / "docs" / "judging.md"
    assert f"```text\n{QUESTION}```" in page.read_text(encoding="utf-8")


def test_a_question_holds_any_text():
    assert sides(question("{prompt}", "{a} {0}", "{{b}}")) == ("{a} {0}", "{{b}}")
