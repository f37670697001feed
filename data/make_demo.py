"""Make everything in data/demo from one seed: `python data/make_demo.py` (about ten minutes on one CPU core).

The base model is pretrained from scratch, on CPU, on conversations of the demo's world; see data/README.md.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Iterable
from itertools import product
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lorarlhf.demo import world

SEED = 20
OUTPUT = Path(__file__).parent / "demo"

HELD_OUT_TOPICS = 16  # pairs of item and kind of question, for each of the two held-out sets
TRAIN_PROMPTS = 500
PREFERENCES, PREFERENCES_TEST = 6000, 500
FLIPPED = 0.1
DEMONSTRATIONS = 300

STEPS, BATCH = 1200, 48
LEARNING_RATE = 4e-3
WARMUP_STEPS = 60
PROMPT_LOSS_WEIGHT = 0.1
AVERAGED_STEPS = 80  # the weights that are saved are the mean over these last steps

PAD, BOS, EOS, SYSTEM, USER, ASSISTANT = SPECIAL_TOKENS = (
    "<|pad|>",
    "<|bos|>",
    "<|eos|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
)
# `generation` marks what the assistant wrote, for trainers that take a loss on the assistant's tokens only.
CHAT_TEMPLATE = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{%- if message['role'] == 'assistant' %}"
    "{{- '<|assistant|>' }}{% generation %}{{- message['content'] + eos_token }}{% endgeneration %}"
    "{%- elif message['role'] in ['system', 'user'] %}"
    "{{- '<|' + message['role'] + '|>' + message['content'] }}"
    "{%- else %}"
    "{{- raise_exception('Roles are system, user and assistant, not ' + message['role']) }}"
    "{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>' }}{% endif %}"
)


def split_prompts(rng: random.Random) -> tuple[list[str], list[str], list[str]]:
    """Train, preference-test and prompt-test prompts; a held-out prompt's item and kind never meet in training."""
    topics = [world.Question(kind, item) for item, kind in product(world.ITEMS, world.QUESTIONS)]
    rng.shuffle(topics)
    held_out = {
        topic: part for part in (1, 2) for topic in topics[(part - 1) * HELD_OUT_TOPICS : part * HELD_OUT_TOPICS]
    }
    parts: tuple[list[str], list[str], list[str]] = ([], [], [])
    for prompt in world.all_prompts():
        parts[held_out.get(world.parse_prompt(prompt), 0)].append(prompt)
    for prompts in parts:
        rng.shuffle(prompts)
    return parts


def user(prompt: str) -> dict[str, str]:
    return {"role": "user", "content": prompt}


def assistant(response: str) -> dict[str, str]:
    return {"role": "assistant", "content": response}


def preference_pairs(prompts: list[str], count: int, rng: random.Random) -> list[dict[str, object]]:
    """Pairs of base responses, the one with the higher gold score chosen; then exactly a tenth are swapped."""
    rows: list[dict[str, object]] = []
    flipped = set(rng.sample(range(count), round(FLIPPED * count)))
    while len(rows) < count:
        prompt = prompts[len(rows) % len(prompts)]
        one, other = world.sample_response(prompt, rng), world.sample_response(prompt, rng)
        margin = world.gold_score(prompt, one) - world.gold_score(prompt, other)
        if not margin:
            continue
        if (margin < 0) != (len(rows) in flipped):
            one, other = other, one
        rows.append({"prompt": [user(prompt)], "chosen": [assistant(one)], "rejected": [assistant(other)]})
    rng.shuffle(rows)
    return rows


def demonstrations(prompts: list[str], count: int, rng: random.Random) -> list[dict[str, object]]:
    """Conversations with the best response there is."""
    rows: list[dict[str, object]] = []
    for prompt in rng.sample(prompts, count):
        response = ""
        while world.gold_score(prompt, response) < world.HIGHEST_SCORE:
            response = world.sample_response(prompt, rng)
        rows.append({"messages": [user(prompt), assistant(response)]})
    return rows


def write_jsonl(name: str, rows: Iterable[object]) -> None:
    (OUTPUT / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make_tokenizer(prompts: list[str], rng: random.Random) -> PreTrainedTokenizerFast:
    """Byte-level BPE, so that any text can be encoded and every generated text decodes byte for byte."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = [text for prompt in prompts for text in (prompt, *(world.sample_response(prompt, rng) for _ in range(8)))]
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        model_max_length=256,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """An untrained model; every width is a multiple of 64, the block of NF4."""
    token_ids = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=448,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        **token_ids,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(do_sample=True, temperature=1.0, max_new_tokens=48, **token_ids)
    return model


def training_batch(
    prompts: list[str], tokenizer: PreTrainedTokenizerFast, rng: random.Random
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [batch, length], padded on the right, and the weight [batch, length] of each as a target."""
    chosen = rng.choices(prompts, k=BATCH)
    asked = tokenizer([f"{BOS}{USER}{prompt}{ASSISTANT}" for prompt in chosen], add_special_tokens=False)["input_ids"]
    answered = tokenizer([world.sample_response(prompt, rng) + EOS for prompt in chosen], add_special_tokens=False)[
        "input_ids"
    ]
    length = max(len(a) + len(b) for a, b in zip(asked, answered, strict=True))
    ids = torch.full((BATCH, length), tokenizer.pad_token_id)
    weights = torch.zeros(BATCH, length)
    for row, (a, b) in enumerate(zip(asked, answered, strict=True)):
        ids[row, : len(a) + len(b)] = torch.tensor(a + b)
        weights[row, : len(a)] = PROMPT_LOSS_WEIGHT
        weights[row, len(a) : len(a) + len(b)] = 1.0
    return ids, weights


def pretrain(
    model: LlamaForCausalLM, prompts: list[str], tokenizer: PreTrainedTokenizerFast, rng: random.Random
) -> None:
    """Next-token training on fresh samples of the world; leaves the mean of the last weights in `model`."""
    matrices = [w for name, w in model.named_parameters() if w.ndim == 2 and "embed" not in name]
    rest = [w for name, w in model.named_parameters() if w.ndim != 2 or "embed" in name]
    # Muon (Jordan et al. 2024) learns to copy the item from the question in about half the steps of AdamW alone.
    optimizers = (
        torch.optim.Muon(matrices, LEARNING_RATE, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05),
    )
    schedules = [
        torch.optim.lr_scheduler.OneCycleLR(
            optimizer, LEARNING_RATE, total_steps=STEPS, pct_start=WARMUP_STEPS / STEPS, cycle_momentum=False
        )
        for optimizer in optimizers
    ]
    average = torch.optim.swa_utils.AveragedModel(model)
    model.train()
    started = time.monotonic()
    for step in range(1, STEPS + 1):
        ids, weights = training_batch(prompts, tokenizer, rng)
        logits = model(ids, use_cache=False).logits[:, :-1]
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        target_weights = weights[:, 1:].flatten()
        loss = (losses * target_weights).sum() / target_weights.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        model.zero_grad()
        if step > STEPS - AVERAGED_STEPS:
            average.update_parameters(model)
        if step % 50 == 0:
            print(f"step {step:5d}  loss {loss.item():.4f}  {time.monotonic() - started:.0f} s", flush=True)
    model.load_state_dict(average.module.state_dict())


def main() -> None:
    torch.manual_seed(SEED)
    torch.set_num_threads(1)  # the rounding of sums depends on it
    torch.use_deterministic_algorithms(True)
    train, preference_test, prompt_test = split_prompts(random.Random(f"{SEED} split"))

    shutil.rmtree(OUTPUT, ignore_errors=True)
    OUTPUT.mkdir(parents=True)
    rng = random.Random(f"{SEED} data")
    write_jsonl("preferences.jsonl", preference_pairs(train, PREFERENCES, rng))
    write_jsonl("preferences_test.jsonl", preference_pairs(preference_test, PREFERENCES_TEST, rng))
    write_jsonl("prompts.jsonl", ({"prompt": [user(prompt)]} for prompt in rng.sample(train, TRAIN_PROMPTS)))
    write_jsonl("prompts_test.jsonl", ({"prompt": [user(prompt)]} for prompt in prompt_test))
    write_jsonl("sft.jsonl", demonstrations(train, DEMONSTRATIONS, rng))

    rng = random.Random(f"{SEED} pretraining")
    tokenizer = make_tokenizer(train, rng)
    model = make_model(tokenizer)
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens")
    pretrain(model, train, tokenizer, rng)
    model.bfloat16().save_pretrained(OUTPUT / "model")
    tokenizer.save_pretrained(OUTPUT / "model")


if __name__ == "__main__":
    main()
