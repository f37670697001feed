"""A Modelfile, which Ollama makes a model of: weights, how a conversation is written, where a response ends.

Ollama writes conversations by a template in Go's language, not by the tokenizer's Jinja. What stands between the
contents of a conversation is read off the tokenizer's own template, and the Go template is made of those pieces: so it
is no list of families that could be out of date, and it is written only where it comes to the same text.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from lorarlhf.data.rendering import render
from lorarlhf.data.rows import Message
from lorarlhf.data.tokenizer import end_of_turn
from lorarlhf.errors import UserError
from lorarlhf.recipe.sections import Recipe

MODELFILE = "Modelfile"
LONGEST_CONTEXT = 4096  # of a model that knows a longer one: memory for the cache grows with it
NO_SYSTEM = "the chat template has no system turn that the TEMPLATE could write: Ollama's SYSTEM is left out"
NO_TEMPLATE = (
    "no TEMPLATE: the chat template is not made of turns that Ollama's could write; it takes what it recognises"
)
UNFILTERED = {"top_k": 0, "top_p": 1.0, "repeat_penalty": 1.0}
PROBES = (
    ("user",),
    ("system", "user"),
    ("user", "assistant", "user", "assistant", "user"),
    ("system", "user", "assistant", "user", "assistant", "user"),
)
# Each <piece> is one of `Turns`. System messages all stand in front, as `.System` gives them.
GO_TEMPLATE = """{{- $before := "" }}
{{- if .System }}{{ <system> }}{{ .System }}{{ $before = "system" }}{{ end }}
{{- range .Messages }}
{{- if eq .Role "user" }}
{{- if eq $before "" }}{{ <opening> }}
{{- else if eq $before "system" }}{{ <after_system> }}
{{- else }}{{ <following> }}{{ end }}
{{- .Content }}{{ $before = "user" }}
{{- else if eq .Role "assistant" }}{{ <answer> }}{{ .Content }}{{ $before = "assistant" }}
{{- end }}
{{- end }}
{{- if eq $before "user" }}{{ <generation> }}{{ end }}"""


@dataclass(frozen=True)
class Turns:
    """What a chat template writes between the contents of a conversation that a user began and has ended.

    Attributes:
        opening: before the first user's, where nothing is before it.
        answer: from a user's to the assistant's.
        following: from an assistant's to the next user's.
        generation: after the last user's; the response goes on from there.
        system, after_system: before a system message, and from it to the first user's; None without such a turn.
    """

    opening: str
    answer: str
    following: str
    generation: str
    system: str | None = None
    after_system: str | None = None

    def render(self, conversation: Sequence[Message]) -> str:
        """The text that `go_template` makes of a conversation."""
        text, before = "", "nothing"
        pieces = {
            ("nothing", "system"): self.system,
            ("nothing", "user"): self.opening,
            ("system", "user"): self.after_system,
            ("user", "assistant"): self.answer,
            ("assistant", "user"): self.following,
        }
        for message in conversation:
            text += f"{pieces[before, message['role']]}{message['content']}"
            before = message["role"]
        return text + self.generation

    def go_template(self) -> str:
        """The same in Go's template language, over what Ollama gives: `.System`, `.Messages`."""
        lines = [line for line in GO_TEMPLATE.split("\n") if self.system is not None or "<system>" not in line]
        return re.sub(r"<(\w+)>", lambda piece: _go_string(getattr(self, piece[1]) or ""), "\n".join(lines))


def turns_of(tokenizer: PreTrainedTokenizerBase) -> Turns | None:
    """What the chat template sets between contents; None where it does not come to the same each time.

    A bos that the tokenizer sets in front of plain text is left out: programs that read the exported tokenizer set it.
    """
    between = _between(tokenizer, ("user", "assistant", "user"))
    if between is None:
        return None
    with_system = _between(tokenizer, ("system", "user", "assistant", "user"))
    system = with_system[:2] if with_system and with_system[2:] == between[1:] else (None, None)
    turns = Turns(*between, *system)
    for roles in PROBES:
        conversation: list[Message] = [{"role": role, "content": f"{role} {n}\nsays."} for n, role in enumerate(roles)]
        if roles[0] == "system" and turns.system is None:
            continue
        if turns.render(conversation) != render(tokenizer, conversation, add_generation_prompt=True):
            return None
    if not _sets_bos(tokenizer):
        return turns
    bos = str(tokenizer.bos_token)
    without = replace(turns, opening=turns.opening.removeprefix(bos))
    return without if turns.system is None else replace(without, system=turns.system.removeprefix(bos))


def _sets_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer sets bos in front of plain text, as Ollama does then."""
    ids: list[int] = tokenizer("a")["input_ids"]
    return tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]


def modelfile(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    config: PreTrainedConfig,
    weights: str,
    adapter: str | None = None,
    reads_text: bool = False,
) -> tuple[str, list[str]]:
    """A Modelfile, and a line for each thing in which Ollama may write prompts otherwise than training did.

    Args:
        config: of the base model.
        weights: what lies beside the Modelfile: a GGUF's name, or `.` for safetensors.
        adapter: GGUF of an adapter on top of these weights.
        reads_text: prompts were plain text that goes on, not conversations.
    """
    notes, template = [], None
    if reads_text:
        template = "{{ .Prompt }}"
    elif turns := turns_of(tokenizer):
        template = turns.go_template()
        if turns.system is None:
            notes.append(NO_SYSTEM)
    else:
        notes.append(NO_TEMPLATE)
    lines = [*(f"# {note}" for note in notes), f"FROM {weights}"]
    if adapter is not None:
        lines.append(f"ADAPTER {adapter}")
    if template is not None:
        lines.append(f'TEMPLATE """{template}"""')
    ends = dict.fromkeys(tokenizer.convert_ids_to_tokens([end_of_turn(tokenizer), tokenizer.eos_token_id]))
    # A tokenizer may come from elsewhere: what would end the quotes would write lines of its own.
    lines += [f'PARAMETER stop """{token}"""' for token in ends if '"' not in token and token.isprintable()]
    # As it was sampled in training: nothing filtered, nothing penalised.
    lines += [
        f"PARAMETER {name} {value}" for name, value in {"temperature": recipe.ppo.temperature, **UNFILTERED}.items()
    ]
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    if longest:
        lines.append(f"PARAMETER num_ctx {min(longest, LONGEST_CONTEXT)}")
    return "\n".join(lines) + "\n", notes


def ollama_lines(folder: Path, called: str = "") -> list[str]:
    """What to type to make an Ollama model of an exported folder and to run it; nothing if it has no Modelfile.

    Args:
        called: what the model's name is made of; else it is that of the folder.
    """
    if not (folder / MODELFILE).is_file():
        return []
    name = re.sub(r"[^a-z0-9._-]+", "-", (called or folder.resolve().name).lower()).strip("-._") or "my-model"
    create = f"ollama create {name} -f {shlex.quote(str(folder / MODELFILE))}"
    weights = (folder / MODELFILE).read_text(encoding="utf-8").partition("FROM ")[2].partition("\n")[0]
    lines = [f"`{create}`, then `ollama run {name}`"]
    if weights == ".":
        lines.append("where that takes no safetensors, export with --gguf q8_0 --llama-cpp DIR as well")
    elif not (folder / weights).exists():
        lines.append(f"put the base model there first, as {folder / weights} (convert_hf_to_gguf.py of llama.cpp)")
    return lines


def _between(tokenizer: PreTrainedTokenizerBase, roles: Sequence[str]) -> list[str] | None:
    """What the template writes before, between and after the contents of such a conversation; None if it refuses."""
    contents = [f"lorarlhf{n}" for n in range(len(roles))]  # words that no template has of its own
    conversation: list[Message] = [
        {"role": role, "content": content} for role, content in zip(roles, contents, strict=True)
    ]
    try:
        rest = render(tokenizer, conversation, add_generation_prompt=True)
    except UserError:
        return None
    pieces = []
    for content in contents:
        piece, found, rest = rest.partition(content)
        if not found:
            return None
        pieces.append(piece)
    return [*pieces, rest]


def _go_string(text: str) -> str:
    """A string of Go's; escapes of JSON are Go's too. Ollama drops from a Modelfile whatever cannot be printed."""
    escaped = json.dumps(text, ensure_ascii=False)
    return "".join(mark if mark.isprintable() else f"\\U{ord(mark):08x}" for mark in escaped)
