"""Talk with the policy of a run, or a model; have it answer better, and say which of two policies does."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from lorarlhf.backbone.adapters import BASE
from lorarlhf.data.rendering import render
from lorarlhf.data.rows import Message, Prompt, completion_text
from lorarlhf.data.tokenize import PromptExample, encode_prompt
from lorarlhf.data.tokenizer import has_chat_template
from lorarlhf.errors import UserError
from lorarlhf.generation.draw import uniform_table
from lorarlhf.generation.stream import TextStream
from lorarlhf.preferences.labelling import Answer, Labelling, Task, login_name
from lorarlhf.preferences.labels import LabelFile
from lorarlhf.preferences.pairs import append_pair, make_pair, read_pairs
from lorarlhf.preferences.sampling import Sampler, as_completion, scored_responses
from lorarlhf.recipe.sections import DataConfig
from lorarlhf.recipe.stages import POLICY_STAGES
from lorarlhf.run import BEST, Run
from lorarlhf.stages.evaluate import BASE_MODEL, reference_of
from lorarlhf.stages.sample import LENGTH, TEMPERATURE, Respondent, load_respondent, of_run

NOBODY = "me"  # an annotator must have a name
logger = logging.getLogger(__name__)

Verdict = Literal["left", "right", "tie", "both_bad", "skip"]


def before_and_after(run: Run, checkpoint: str | int = BEST) -> Respondent:
    """The latest policy of a run, behind what it started from; the base alone if nothing has been trained.

    Raises:
        UserError: it is no run, or has no such checkpoint.
    """
    after = of_run(run, checkpoint=checkpoint)
    stage = next((stage for stage in POLICY_STAGES if run.has_adapter(stage)), None)
    if stage is None:
        return after
    start = reference_of(run, stage)
    before = BASE if start == BASE_MODEL else str(run.stage(start))
    return replace(after, sources=[before, *after.sources])


def open_chat(
    respondent: Respondent,
    labels: Path,
    temperature: float | None = None,
    response_length: int | None = None,
    seed: int = 0,
    allow_other_base: bool = False,
) -> Chat:
    """Load who answers: the last of its sources, and the first of two as what that is compared with.

    Args:
        labels: folder for what `Chat.record` writes.
        temperature, response_length: None takes the recipe's; of a model 1.0 and 256.
        allow_other_base: take adapters that say they were trained on another model.
    """
    recipe = respondent.recipe
    data = recipe.data if recipe else DataConfig()
    backbone, roles = load_respondent(respondent, data, respondent.reward, allow_other_base)
    sampler = Sampler(
        backbone,
        roles,
        respondent.sources,
        1,
        response_length or (recipe.ppo.response_length if recipe else LENGTH),
        temperature or (recipe.ppo.temperature if recipe else TEMPERATURE),
        seed,
        {},
    )
    # A tuned policy has learnt the plain turns that conversations are written in where there is no template.
    knows_turns = has_chat_template(backbone.tokenizer) or roles[-1] != BASE
    return Chat(sampler, labels, in_turns=knows_turns and data.wrap_text != "never")


@dataclass(frozen=True)
class Said:
    """An answer, and what ended it: the model, the limit of its length, or Ctrl-C."""

    text: str
    ended_by: Literal["model", "limit", "interrupt"]


@dataclass(frozen=True)
class Best:
    """The best of several answers, and the scores of all, as they were drawn."""

    text: str
    scores: list[float]


class Chat:
    """A conversation. Each answer is sampled as a rollout is.

    Args:
        sampler: of one role, or two of which the last answers and the first is what it is compared with.
        labels: folder for the pairs and labels of comparisons, made with the first of them.
        in_turns: whether the model is told turns; else it goes on with the last text alone, as a base model does.

    Attributes:
        history: turns of user and assistant, oldest first; the last may be a user's that has no answer.
        system: what the model is told beforehand.
    """

    def __init__(self, sampler: Sampler, labels: Path, in_turns: bool) -> None:
        self.sampler = sampler
        self.labels = labels
        self.in_turns = in_turns
        self.history: list[Message] = []
        self.system: str | None = None
        self._drawn = 0  # answers so far, each with random numbers of its own
        self._file: LabelFile | None = None
        config = sampler.backbone.causal_lm.config.get_text_config()
        self._context: int | None = getattr(config, "max_position_embeddings", None)  # families without say no limit

    @property
    def policy(self) -> str:
        """Who answers."""
        return self.sampler.names[-1]

    @property
    def pairs_path(self) -> Path:
        return self.labels / "pairs.jsonl"

    @property
    def labels_path(self) -> Path:
        return self.labels / "labels.jsonl"

    def close(self) -> None:
        """Let the file of labels go, if one was opened."""
        if self._file:
            self._file.close()

    def reset(self) -> None:
        """Forget the conversation, but not what the model is told beforehand."""
        self.history = []

    def set_system(self, text: str) -> None:
        """Tell the model this beforehand from now on; nothing if it is empty.

        Raises:
            UserError: it completes text, or its chat template has no place for it.
        """
        if text and not self.in_turns:
            raise UserError("/system: plain text is completed here, without turns; write it into the text")
        if text:
            try:
                render(self.sampler.backbone.tokenizer, [_system(text), _user("?")], add_generation_prompt=True)
            except UserError:
                raise UserError("/system: the chat template takes no system message; say it in a message") from None
        self.system = text or None

    def answer(self, text: str, show: Callable[[str], None]) -> Said:
        """Answer a message of the user's.

        Args:
            show: told the answer piece by piece as it is sampled.

        Raises:
            UserError: the message is longer than the model can read. It is forgotten then.
        """
        before = list(self.history)
        self.history = [*self._asked_before(), _user(text)]
        try:
            return self.regenerate(show)
        except UserError:
            self.history = before
            raise

    def regenerate(self, show: Callable[[str], None]) -> Said:
        """Answer the last message again. Ctrl-C ends the answer, and what there is of it is kept.

        Raises:
            UserError: there is no message yet.
        """
        example, room = self._fit("/regen")
        backbone = self.sampler.backbone
        stream = TextStream(backbone.tokenizer, show)
        uniforms = uniform_table(1, room, "chat", self.sampler.seed, self._next())
        ended_by: Literal["model", "limit", "interrupt"] = "interrupt"
        try:
            rollout = self.sampler.responses.sample(
                [example.ids], uniforms, self.sampler.roles[-1], lambda _, token: stream.take(token)
            )
            ended_by = "model" if rollout.finished.item() else "limit"
        except KeyboardInterrupt:
            pass  # `ended_by` says so
        text = stream.close()
        self._keep(text)
        return Said(text, ended_by)

    def best(self, n: int) -> Best:
        """Answer the last message `n` times, and keep the best by the reward model.

        Raises:
            UserError: there is no reward model, or no message yet.
        """
        if "reward" not in self.sampler.backbone.roles:
            raise UserError("/best: there is no reward model to choose by; chat with a --run whose reward has finished")
        example, room = self._fit("/best")
        sampler = replace(self.sampler, n=n, response_length=room)
        (responses,) = scored_responses(sampler, [example], len(sampler.roles) - 1, self._next())
        text, _ = max(responses, key=lambda response: response[1])
        self._keep(text)
        return Best(text, [score for _, score in responses])

    def compare(self) -> Task:
        """Two answers to the last message, by what was before and by what answers now; sides are shuffled.

        Raises:
            UserError: there are not two policies, no message yet, nothing to tell the answers apart by, or the files
                of pairs and labels cannot be added to.
        """
        if len(self.sampler.roles) < 2:
            raise UserError("/compare: needs two policies; chat with a --run that has one, or a --model with --adapter")
        example, room = self._fit("/compare")
        if not isinstance(example.prompt, str) and not all(turn["content"].strip() for turn in example.prompt):
            raise UserError("/compare: an earlier answer is empty, which no pair may hold; /reset and ask again")
        file = self._open_files()
        sampler, number = replace(self.sampler, response_length=room), self._next()
        before, after = (scored_responses(sampler, [example], k, number)[0][0][0] for k in (0, 1))
        if before == after or not (before.strip() and after.strip()):
            raise UserError(f"/compare: both answer {before!r}" if before == after else "/compare: one says nothing")
        a, b = (as_completion(example.prompt, text) for text in (before, after))
        pair = make_pair(example.prompt, a, b, " / ".join(self.sampler.names))
        task = Labelling([pair], file, self.sampler.seed).next_task(self._annotator)
        if task is None:
            raise UserError("/compare: you have compared these two answers before")
        return task

    def policies(self, task: Task) -> tuple[str, str]:
        """Whose answers are on the left and on the right: to be told after the verdict."""
        before, after = self.sampler.names
        return (before, after) if task.left == "a" else (after, before)

    def record(self, task: Task, verdict: Verdict, seconds: float) -> str | None:
        """Write down which side is better, as `collect export` reads it; the better one is the answer from then on.

        Returns:
            the policy whose answer is better, if one is.

        Raises:
            UserError: it cannot be written.
        """
        answer = Answer(task=task.id, pair_id=task.pair.id, choice=verdict, seconds=seconds)
        try:
            append_pair(self.pairs_path, task.pair)  # first: a label of an unknown pair is of no use
            Labelling([task.pair], self._open_files(), self.sampler.seed).record(self._annotator, answer)
        except OSError as error:
            raise UserError(f"{self.labels}: cannot be written: {error.strerror}; the answer is not kept") from error
        if verdict not in ("left", "right"):
            return None
        left = verdict == "left"
        self._keep(completion_text(task.left_response if left else task.right_response))
        return self.policies(task)[0 if left else 1]

    @property
    def _annotator(self) -> str:
        return login_name() or NOBODY

    def _next(self) -> int:
        self._drawn += 1
        return self._drawn

    def _open_files(self) -> LabelFile:
        """The labels, with their pairs seen to: what cannot be added to is to be said before anything is sampled."""
        if self._file is None:
            if self.pairs_path.exists() and self.pairs_path.stat().st_size:
                read_pairs(self.pairs_path)
            self._file = LabelFile(self.labels_path)
        return self._file

    def _asked_before(self) -> list[Message]:
        """The history up to the last answer: a message that got none, as Ctrl-C came first, is not answered."""
        return self.history[:-1] if _role_of_last(self.history) == "user" else self.history

    def _keep(self, text: str) -> None:
        """Make this the answer to the last message."""
        if _role_of_last(self.history) == "assistant":
            self.history.pop()
        self.history.append({"role": "assistant", "content": text})

    def _fit(self, command: str) -> tuple[PromptExample, int]:
        """What is to be answered, and how many tokens there are for it; the oldest turns go where there are too few.

        Raises:
            UserError: there is no message yet, or the last alone is too long; then no turn goes.
        """
        turns = self.history
        while True:
            prompt = self._prompt(command, turns)
            ids = encode_prompt(self.sampler.backbone.tokenizer, prompt)
            room = self.sampler.response_length
            if self._context is not None and len(ids) + room > self._context:
                if self.in_turns and len(turns) > 2:
                    turns = turns[2:]
                    continue
                room = self._context - len(ids)
            break
        if room < 1:
            raise UserError(
                f"a message of {len(ids)} tokens, and the model reads {self._context}, its answer included; "
                "write a shorter one"
            )
        if dropped := len(self.history) - len(turns):
            logger.warning("the %d oldest turns are dropped: the model reads %d tokens", dropped, self._context)
        self.history = turns
        return PromptExample(prompt, ids), room

    def _prompt(self, command: str, turns: list[Message]) -> Prompt:
        asked = turns[:-1] if _role_of_last(turns) == "assistant" else turns
        if not asked:
            raise UserError(f"{command}: there is nothing to answer yet; write a message first")
        if not self.in_turns:
            return asked[-1]["content"]
        return [*([_system(self.system)] if self.system else []), *asked]


def _role_of_last(turns: list[Message]) -> str | None:
    return turns[-1]["role"] if turns else None


def _system(text: str) -> Message:
    return {"role": "system", "content": text}


def _user(text: str) -> Message:
    return {"role": "user", "content": text}
