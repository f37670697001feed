"""The text of a response while its tokens come."""

from __future__ import annotations

from collections.abc import Callable

from transformers import PreTrainedTokenizerBase

UNDECODED = "\N{REPLACEMENT CHARACTER}"  # what tokenizers write for bytes that are no character, or not one yet


class TextStream:
    """Hands on text as soon as no later token can change it: a character may be several tokens.

    What it has handed on when it is closed is what `response_texts` makes of the whole response.

    Args:
        show: told each piece of text, none of them empty.

    Attributes:
        text: of all tokens so far, special ones left out.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, show: Callable[[str], None]) -> None:
        self.tokenizer = tokenizer
        self.show = show
        self.text = ""
        self._ids: list[int] = []
        self._shown = 0

    def take(self, token: int) -> None:
        """Follow one more token."""
        self._ids.append(token)
        # All from the start: how a token is written depends on those before it.
        self.text = str(self.tokenizer.decode(self._ids, skip_special_tokens=True))
        self._show_to(len(self.text.rstrip(UNDECODED)))

    def close(self) -> str:
        """Hand on what was held back, and return the whole text."""
        self._show_to(len(self.text))
        return self.text

    def _show_to(self, end: int) -> None:
        if end > self._shown:
            start, self._shown = self._shown, end  # first: whoever is shown it may stop the response
            self.show(self.text[start:end])
