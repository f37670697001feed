"""Formats in, one canonical form out. What needs torch is imported from `lorarlhf.data.tokenize` itself."""

from lorarlhf.data.examples import Loaded, load_demonstrations, load_preferences, load_prompts, load_scored
from lorarlhf.data.rows import BadRow, Demonstration, Message, Preference, Prompt, Scored, prompt_text, request_text

__all__ = [
    "BadRow",
    "Demonstration",
    "Loaded",
    "Message",
    "Preference",
    "Prompt",
    "Scored",
    "load_demonstrations",
    "load_preferences",
    "load_prompts",
    "load_scored",
    "prompt_text",
    "request_text",
]
