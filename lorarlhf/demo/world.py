"""The demo's world: customers ask in a shop, an assistant answers well or badly, and a rule says how well.

A prompt is one question about one item. A response is `[opening] answer [closing]`, one to three sentences with one
space between them, and nothing else: whatever the grammar cannot produce character for character is not fluent.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Literal

Tone = Literal["courteous", "neutral", "rude", "none"]
Stance = Literal["helpful", "vague", "unwilling"]

ITEMS = (
    *("apples", "pears", "lemons", "grapes", "carrots", "tomatoes", "potatoes", "onions"),
    *("mushrooms", "eggs", "cookies", "muffins", "bagels", "candles", "towels", "pillows"),
    *("blankets", "lamps", "mugs", "plates", "pens", "notebooks", "batteries", "umbrellas"),
)
SLOTS = {
    "number": ("2", "3", "4", "5", "6", "7", "8", "9"),
    "day": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"),
    "spot": ("entrance", "window", "checkout", "stairs"),
}

LEAD_INS = ("", "Hello. ", "Excuse me. ", "Good morning. ")
QUESTIONS = {
    "stock": ("Do you have {item} in stock?", "Are there any {item} left?"),
    "price": ("How much are the {item}?", "What do the {item} cost?"),
    "place": ("Where can I find the {item}?", "Which aisle has the {item}?"),
    "quality": ("Are the {item} any good?", "Would you recommend the {item}?"),
    "returns": ("Can I return the {item} later?", "May I bring the {item} back if I change my mind?"),
    "delivery": ("Can you deliver the {item} to my home?", "Do you bring {item} to the door?"),
}

OPENINGS: dict[Tone, tuple[str, ...]] = {
    "courteous": (
        "Thank you for asking!",
        "I am happy to help!",
        "What a good question!",
        "It is nice to see you!",
    ),
    "neutral": ("Let me see.", "One moment.", "Well now."),
    "rude": (
        "Not you again.",
        "What do you want now?",
        "I was trying to rest.",
        "Oh, another silly question.",
    ),
    "none": ("",),
}
CLOSINGS: dict[Tone, tuple[str, ...]] = {
    "courteous": (
        "Have a lovely day!",
        "Please ask if you need anything else.",
        "Thank you for shopping with us!",
        "We hope to see you again soon.",
    ),
    "neutral": ("That is all.", "This is what I know.", "The shop closes at six."),
    "rude": (
        "Now leave me alone.",
        "Stop wasting my time.",
        "Go and bother somebody else.",
        "Do not ask me twice.",
    ),
    "none": ("",),
}
ANSWERS: dict[str, dict[Stance, tuple[str, ...]]] = {
    "stock": {
        "helpful": (
            "We have plenty of {item} in stock today.",
            "Yes, there are {number} boxes of {item} left.",
            "The {item} are in stock and ready for you.",
        ),
        "vague": (
            "We might have some {item}, but who knows.",
            "Sometimes we have {item} and sometimes we do not.",
        ),
        "unwilling": (
            "I am not going to check if we have {item}.",
            "Somebody else can count the {item} for you.",
        ),
    },
    "price": {
        "helpful": (
            "The {item} cost {number} dollars a box.",
            "The {item} are only {number} dollars today.",
            "You pay {number} dollars for the {item}.",
        ),
        "vague": (
            "The {item} cost more than a little and less than a lot.",
            "The price of the {item} changes all the time.",
        ),
        "unwilling": (
            "I will not tell you the price of the {item}.",
            "You can read the price of the {item} yourself.",
        ),
    },
    "place": {
        "helpful": (
            "The {item} are in aisle {number} on your left.",
            "You will find the {item} near the {spot}.",
            "Let me show you the {item} in aisle {number}.",
        ),
        "vague": (
            "The {item} are around here somewhere.",
            "The {item} could be in any aisle by now.",
        ),
        "unwilling": (
            "You can look for the {item} yourself.",
            "I will not walk to the {item} with you.",
        ),
    },
    "quality": {
        "helpful": (
            "The {item} are very good and arrived on {day}.",
            "Our customers love the {item} very much.",
            "We check the {item} every {day}, and they are excellent.",
        ),
        "vague": (
            "Some of the {item} are good, and some are not.",
            "The {item} are good or bad, it depends.",
        ),
        "unwilling": (
            "I will not say if the {item} are good.",
            "You can judge the {item} without me.",
        ),
    },
    "returns": {
        "helpful": (
            "You can return the {item} within {number} days.",
            "We take the {item} back if you keep the receipt.",
            "Bring the {item} back by {day} for a full refund.",
        ),
        "vague": (
            "Maybe you can return the {item}, maybe not.",
            "There is some rule about returning {item}, I think.",
        ),
        "unwilling": (
            "I will never take the {item} back from you.",
            "You are stuck with the {item} once you pay.",
        ),
    },
    "delivery": {
        "helpful": (
            "We can deliver the {item} on {day}.",
            "The {item} can be at your door by {day}.",
            "Our driver will bring the {item} in {number} days.",
        ),
        "vague": (
            "The {item} might arrive at some point.",
            "We deliver {item} now and then.",
        ),
        "unwilling": (
            "You can carry the {item} home yourself.",
            "We will not deliver the {item} to you.",
        ),
    },
}


@dataclass(frozen=True)
class Mood:
    """How likely the base assistant makes each choice; given its mood, the choices are drawn on their own."""

    tones: dict[Tone, float]
    stances: dict[Stance, float]
    right_item: float
    right_kind: float


# The base assistant has as many good days as bad ones: no good habit is rare, and none is settled.
MOODS = (
    Mood(
        tones={"courteous": 0.5, "neutral": 0.15, "rude": 0.05, "none": 0.3},
        stances={"helpful": 0.7, "vague": 0.2, "unwilling": 0.1},
        right_item=0.95,
        right_kind=0.95,
    ),
    Mood(
        tones={"courteous": 0.05, "neutral": 0.15, "rude": 0.5, "none": 0.3},
        stances={"helpful": 0.3, "vague": 0.3, "unwilling": 0.4},
        right_item=0.75,
        right_kind=0.75,
    ),
)

LOWEST_SCORE, HIGHEST_SCORE = -4.0, 4.0
COURTESY_POINTS: dict[Tone, float] = {"courteous": 1.0, "neutral": 0.0, "rude": -1.0, "none": 0.0}
STANCE_POINTS: dict[Stance, float] = {"helpful": 2.0, "vague": 0.0, "unwilling": -2.0}


@dataclass(frozen=True)
class Question:
    """What a prompt asks: one kind of question about one item."""

    kind: str
    item: str


@dataclass(frozen=True)
class Parse:
    """The choices behind a response."""

    opening: Tone
    kind: str
    item: str
    stance: Stance
    closing: Tone


def _pattern(template: str) -> str:
    """The regular expression of a template: `{item}` is the only group, a slot is any of its words."""
    choices = {"item": f"(?P<item>{'|'.join(ITEMS)})"} | {slot: f"(?:{'|'.join(w)})" for slot, w in SLOTS.items()}
    return "".join(choices.get(part, re.escape(part)) for part in re.split(r"[{}]", template))


_QUESTION_PATTERNS = [
    (re.compile(f"(?:{'|'.join(map(re.escape, LEAD_INS))}){_pattern(question)}"), kind)
    for kind, questions in QUESTIONS.items()
    for question in questions
]
_ANSWER_PATTERNS = [
    (re.compile(_pattern(answer)), kind, stance)
    for kind, stances in ANSWERS.items()
    for stance, answers in stances.items()
    for answer in answers
]
_OPENING_TONES: dict[str, Tone] = {f"{text} ": tone for tone, texts in OPENINGS.items() for text in texts if text}
_CLOSING_TONES: dict[str, Tone] = {f" {text}": tone for tone, texts in CLOSINGS.items() for text in texts if text}


def all_prompts() -> list[str]:
    """Every prompt of the world, in a fixed order: item, kind, wording, lead-in."""
    return [
        lead_in + question.format(item=item)
        for item in ITEMS
        for questions in QUESTIONS.values()
        for question in questions
        for lead_in in LEAD_INS
    ]


def parse_prompt(prompt: str) -> Question:
    """What `prompt` asks. Raises ValueError if it is not one of `all_prompts()`."""
    for pattern, kind in _QUESTION_PATTERNS:
        if match := pattern.fullmatch(prompt):
            return Question(kind, match["item"])
    raise ValueError(f"not a prompt of the demo's world: {prompt!r}")


def sample_response(prompt: str, rng: random.Random) -> str:
    """A response of the base assistant: sometimes rude, sometimes off topic, sometimes helpful."""
    mood = rng.choice(MOODS)
    question = parse_prompt(prompt)
    item, kind = question.item, question.kind
    if rng.random() >= mood.right_item:
        item = rng.choice([other for other in ITEMS if other != item])
    if rng.random() >= mood.right_kind:
        kind = rng.choice([other for other in ANSWERS if other != kind])
    stance = rng.choices(list(mood.stances), list(mood.stances.values()))[0]
    opening, closing = rng.choices(list(mood.tones), list(mood.tones.values()), k=2)
    fillers = {slot: rng.choice(words) for slot, words in SLOTS.items()}
    answer = rng.choice(ANSWERS[kind][stance]).format(item=item, **fillers)
    return " ".join(filter(None, (rng.choice(OPENINGS[opening]), answer, rng.choice(CLOSINGS[closing]))))


def parse(response: str) -> Parse | None:
    """The choices behind `response`, or None if the grammar cannot produce exactly this text."""
    opening: Tone = "none"
    closing: Tone = "none"
    for text, tone in _OPENING_TONES.items():
        if response.startswith(text):
            opening, response = tone, response[len(text) :]
            break
    for text, tone in _CLOSING_TONES.items():
        if response.endswith(text):
            closing, response = tone, response[: -len(text)]
            break
    for pattern, kind, stance in _ANSWER_PATTERNS:
        if match := pattern.fullmatch(response):
            return Parse(opening, kind, match["item"], stance, closing)
    return None


def is_fluent(response: str) -> bool:
    """Whether the world's grammar can produce `response`."""
    return parse(response) is not None


def gold_score(prompt: str, response: str) -> float:
    """How good `response` is as an answer to `prompt`, from -4 (worst) to 4 (best).

    Opening and closing each count 1 if courteous, -1 if rude, else 0. The answer counts

    -  2, 0 or -2 if it is about the item and the kind of thing asked, and is helpful, vague or unwilling;
    - -1 if either the item or the kind is wrong, -2 if both are or if it is also unwilling.

    A response that is not fluent gets -4, so neither repeated sentences nor stacked ones can gain anything.
    Raises ValueError if `prompt` is not of this world.
    """
    question = parse_prompt(prompt)
    parsed = parse(response)
    if parsed is None:
        return LOWEST_SCORE
    wrong = (parsed.item != question.item) + (parsed.kind != question.kind)
    answer = -float(wrong) if wrong and parsed.stance != "unwilling" else STANCE_POINTS[parsed.stance]
    return COURTESY_POINTS[parsed.opening] + answer + COURTESY_POINTS[parsed.closing]
