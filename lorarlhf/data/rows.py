"""The one form that every data set is brought into."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, TypeVar

Message: TypeAlias = dict[str, str]  # {"role": ..., "content": ...}
Prompt: TypeAlias = str | list[Message]  # plain text, or a conversation whose last turn a model can answer
Completion: TypeAlias = (
    str | list[Message]
)  # text after a text prompt; messages, the last by the assistant, after others


class BadRow(Exception):  # noqa: N818 - what it is, as `StopIteration`
    """A row that cannot be used. The message is a short reason that quotes nothing, so that it can be counted."""


@dataclass(frozen=True, slots=True)
class Preference:
    """Two completions of one prompt, the first preferred, by `margin` if the data says how much.

    Of a tie neither is preferred, whatever the names say. `annotators` are who gave this answer, if named; `votes` are
    all that were given, where the row has more than that: 1 for the chosen one, -1 for the rejected one, 0 for neither.
    """

    prompt: Prompt
    chosen: Completion
    rejected: Completion
    margin: float | None = None
    tie: bool = False
    annotators: tuple[str, ...] = ()
    votes: tuple[tuple[str, int], ...] = ()

    def all_votes(self) -> tuple[tuple[str, int], ...]:
        """Of each annotator that is named what they answered."""
        return self.votes or tuple((name, 0 if self.tie else 1) for name in self.annotators)


@dataclass(frozen=True, slots=True)
class Choice:
    """Right and wrong completions of one prompt, one or more of each; `subset` and `name` are their benchmark's."""

    prompt: list[Message]
    right: tuple[list[Message], ...]
    wrong: tuple[list[Message], ...]
    subset: str
    name: str


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A prompt and the completion to imitate."""

    prompt: Prompt
    completion: Completion


@dataclass(frozen=True, slots=True)
class Scored:
    """A completion with an absolute score, for the regression objective."""

    prompt: Prompt
    completion: Completion
    score: float


@dataclass(frozen=True, slots=True)
class PromptRow:
    """A prompt, and what else its row has for reward functions: columns by the names that the data has for them."""

    prompt: Prompt
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ColumnsWanted:
    """Which columns of a row go with its prompt: those `needed`, those `welcome` where a row has them, or `all`."""

    needed: frozenset[str] = frozenset()
    welcome: frozenset[str] = frozenset()
    all: bool = False

    def of(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The columns wanted. Raises BadRow if the row lacks one that is needed."""
        missing = sorted(self.needed - row.keys())
        if missing:
            raise BadRow(
                f"no column {', '.join(missing)}, which ppo.reward_functions ask for; there are {', '.join(row)}"
            )
        return {name: value for name, value in row.items() if self.all or name in self.needed | self.welcome}


NO_COLUMNS = ColumnsWanted()


Example: TypeAlias = Preference | Demonstration | Scored | Prompt
AnyExample = TypeVar("AnyExample", Preference, Demonstration, Scored, PromptRow)


def is_text(example: Preference | Demonstration | Scored | PromptRow) -> bool:
    """Whether it is plain text that goes on where the prompt ends, not a conversation."""
    return isinstance(example.prompt, str)


def in_turns(example: AnyExample) -> AnyExample:
    """The same as a conversation: a text prompt becomes a turn of the user's, what goes on from it the assistant's."""
    prompt = turns(example.prompt, "user")
    if isinstance(example, Preference):
        chosen, rejected = turns(example.chosen, "assistant"), turns(example.rejected, "assistant")
        return replace(example, prompt=prompt, chosen=chosen, rejected=rejected)
    if isinstance(example, PromptRow):
        return replace(example, prompt=prompt)
    return replace(example, prompt=prompt, completion=turns(example.completion, "assistant"))


def turns(value: str | list[Message], role: str) -> list[Message]:
    """Messages as they are; text as one message, without the space around it."""
    return [{"role": role, "content": value.strip()}] if isinstance(value, str) else value


def prompt_text(prompt: Prompt) -> str:
    """The whole prompt for people to read: text as it is, a conversation as `role: content` lines.

    Two prompts are the same if this is the same: splits and duplicates are judged by it.
    """
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def completion_text(completion: Completion) -> str:
    """The whole completion for people to read; of several turns, each but the first names who speaks."""
    if isinstance(completion, str):
        return completion
    first, *others = completion
    return "\n".join([first["content"], *(f"{message['role']}: {message['content']}" for message in others)])


def request_text(prompt: Prompt) -> str:
    """What is being asked, as a reward function gets it: the text, or the user's messages since the last answer."""
    if isinstance(prompt, str):
        return prompt
    asked: list[str] = []
    for message in reversed(prompt):
        if message["role"] == "assistant":
            break
        if message["role"] == "user":
            asked.append(message["content"])
    return "\n".join(reversed(asked))
