"""Text that is shown while tokens come is the text of the whole response, and no half of a character."""

import pytest
import torch
from byte_level import make_tokenizer
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from lorarlhf.generation.draw import uniform_table
from lorarlhf.generation.sample import response_texts, sample_responses
from lorarlhf.generation.stream import UNDECODED, TextStream

TEXTS = ["Grüße, 日本語!", "👩‍👩‍👧 don't . 🎉", "  two  spaces ", "no � at all", "é"]


def byte_fallback() -> PreTrainedTokenizerFast:
    """SentencePiece's way: a token a byte for what the vocabulary lacks, words with a mark in front."""
    pieces = {"<unk>": 0, "</s>": 1, "▁the": 2, "▁": 3} | {f"<0x{byte:02X}>": byte + 4 for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(pieces, [], byte_fallback=True, unk_token="<unk>"))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


def pieces_of(tokenizer, ids: list[int]) -> list[str]:
    pieces: list[str] = []
    stream = TextStream(tokenizer, pieces.append)
    for token in ids:
        stream.take(token)
    assert stream.close() == "".join(pieces)
    return pieces


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_the_text(text):
    tokenizer = make_tokenizer()
    ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    pieces = pieces_of(tokenizer, ids)
    assert "".join(pieces) == text == tokenizer.decode(ids, skip_special_tokens=True)
    assert all(pieces)
    if UNDECODED not in text:
        assert UNDECODED not in "".join(pieces)
        assert len(pieces) > 1 or len(text) == 1


@pytest.mark.parametrize("text", ["Grüße", "日本", "🎉🎉"])
def test_bytes_of_sentencepiece_wait_for_their_character(text):
    ids = [2, 3, *(byte + 4 for byte in text.encode())]
    assert pieces_of(byte_fallback(), ids) == ["the", " ", *text]


def test_what_never_becomes_a_character_is_shown_in_the_end():
    tokenizer = make_tokenizer()
    ids = tokenizer("ab日")["input_ids"][:-1]
    assert pieces_of(tokenizer, ids) == ["a", "b", UNDECODED]


def test_tokens_are_told_as_they_are_drawn_and_change_nothing(demo_backbone):
    demo_backbone.eval().causal_lm.generation_config.eos_token_id = list(range(260, 320))
    prompts = [[1, 4, 30], [1, 4, 30, 31, 32], [1, 4], [5, 6]]
    uniforms = uniform_table(len(prompts), 20, 3)
    told: dict[int, list[int]] = {row: [] for row in range(len(prompts))}
    plain = sample_responses(demo_backbone, prompts, uniforms, 1.0, token_budget=60)
    heard = sample_responses(
        demo_backbone, prompts, uniforms, 1.0, token_budget=60, on_token=lambda row, token: told[row].append(token)
    )
    assert torch.equal(plain.sequences.tokens, heard.sequences.tokens)
    assert torch.equal(plain.logprobs, heard.logprobs)
    assert list(told.values()) == heard.sequences.responses()
    assert len(set(map(len, told.values()))) > 1, "rows that end leave the batch"
    texts = response_texts(demo_backbone, heard)
    assert ["".join(pieces_of(demo_backbone.tokenizer, ids)) for ids in told.values()] == texts
