"""Chat templates: one for models that bring none, and what makes another render the same on every day.

Changes are written into the template itself, not handed to each call that renders it: what a run and an export save is
then the template that was trained with, for every program that reads it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date
from typing import Any

# Plain words, so that a base model needs no new tokens; each answer ends as a sampled one does, with eos. The line
# break after `Assistant:` lets the first word of an answer be a token of its own, without a space in front. Line breaks
# stand inside expressions because transformers has Jinja trim the one that follows a block.
PLAIN = r"""
{%- for message in messages -%}
{{ message['role'].capitalize() + ':\n' + message['content'] }}
{%- if message['role'] == 'assistant' -%}{{ eos_token }}{%- endif -%}
{{ '\n\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'Assistant:\n' }}{%- endif -%}
"""

# For tokenizers that put bos in front of plain text; a rendered template is tokenised without it.
PLAIN_WITH_BOS = "{{ bos_token }}" + PLAIN

FIXED_DATE = date(2024, 7, 26)  # what Llama 3's template prints where it is not told the date
_TODAY = re.compile(r"strftime_now\(\s*(['\"])(?P<format>.{0,100}?)\1\s*\)")


def with_fixed_date(template: str) -> str:
    """The template with `FIXED_DATE` wherever it would print today's.

    A reward model trained on one day would else score prompts of another. transformers lets no caller say the date:
    what templates ask for it is a function, and callers hand over data alone.
    """
    return _TODAY.sub(lambda call: repr(FIXED_DATE.strftime(call["format"])), template)


def with_defaults(template: str, values: Mapping[str, Any]) -> str:
    """The template with other values for what the caller leaves out: one line each, in front.

    Each line ends in a break that Jinja takes off, so that the template's first line still begins a line.
    """
    return "".join(f"{default_line(name)}{value!r} %}}{{%- endif %}}\n" for name, value in values.items()) + template


def default_line(name: str) -> str:
    """How the line of `with_defaults` for a variable begins."""
    return f"{{%- if {name} is not defined %}}{{%- set {name} = "
