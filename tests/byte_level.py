"""Byte-level tokenizers made here, a prompt and an answer."""

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXT = [
    "User:\nWhat is the sky?\n\nAssistant:\nThe sky is blue today.",
    "Hello there, why is the sky so blue? It is late.",
]
CHAT = [{"role": "user", "content": "What is the sky?"}]
ANSWER = [{"role": "assistant", "content": "The sky is blue."}]


def make_tokenizer(special=("<eos>",), bos=False, appends_eos=False, **named):
    """Byte-level BPE of about 300 entries, special tokens last as in Llama 3; `<eos>` is eos unless told otherwise."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False))
    bpe.add_special_tokens([AddedToken(token, special=True) for token in special])
    if bos or appends_eos:
        single = ("<bos> " if bos else "") + "$A" + (" <eos>" if appends_eos else "")
        tokens = [(token, bpe.token_to_id(token)) for token in special]
        bpe.post_processor = processors.TemplateProcessing(single=single, special_tokens=tokens)
    names = {"eos_token": "<eos>"} | ({"bos_token": "<bos>"} if bos else {}) | named
    return PreTrainedTokenizerFast(tokenizer_object=bpe, **names)
