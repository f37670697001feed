"""The chat template for models that bring none."""

from __future__ import annotations

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
