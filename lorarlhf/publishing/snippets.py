"""The code of a model card: how to load the model, and how to have it respond or score as it was trained to.

Prompts are written as in training: a conversation through the chat template, which sets bos itself where there is one,
so that the tokenizer must not; plain text the other way round.
"""

from __future__ import annotations

import json

from transformers import PreTrainedTokenizerBase

from lorarlhf.backbone.load import compute_dtype
from lorarlhf.data.tokenizer import end_of_turn
from lorarlhf.recipe.sections import Recipe

QUESTION, BEGINNING = "What is the capital of France?", "The capital of France is"
RESPONSE = "The capital of France is Paris."
PLACE = "PATH_OR_REPO"


def _literal(text: str) -> str:
    """Text as Python writes it, in double quotes; a name from elsewhere cannot leave them."""
    return json.dumps(text, ensure_ascii=False)


def generation_code(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, base: str, merged: bool, reads_text: bool
) -> str:
    """Python that loads a policy and samples a response as in training.

    Args:
        base: what the base model is called.
        reads_text: it was trained on plain text that goes on, not on conversations.
    """
    if reads_text:
        prompt = [f'inputs = tokenizer("{BEGINNING}", return_tensors="pt").to(model.device)']
    else:
        prompt = [
            f'messages = [{{"role": "user", "content": "{QUESTION}"}}]',
            "inputs = tokenizer.apply_chat_template(",
            '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"',
            ").to(model.device)",
        ]
    ends = dict.fromkeys(tokenizer.convert_ids_to_tokens([end_of_turn(tokenizer), tokenizer.eos_token_id]))
    sampling = [
        f"max_new_tokens={recipe.ppo.response_length}",
        "do_sample=True",
        f"temperature={recipe.ppo.temperature}",
        "top_k=0",
        "top_p=1.0",
        "repetition_penalty=1.0",
        f"eos_token_id=tokenizer.convert_tokens_to_ids({list(ends)!r})",
    ]
    return "\n".join(
        [
            *_loading(recipe, base, merged, "AutoModelForCausalLM", []),
            *prompt,
            "# As it was sampled in training: nothing filtered, nothing penalised.",
            "output = model.generate(",
            "    **inputs,",
            *(f"    {option}," for option in sampling),
            ")",
            'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
        ]
    )


def scoring_code(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, base: str, merged: bool, reads_text: bool) -> str:
    """Python that loads a reward model and scores a response: `score(prompt, response)`; arguments as above."""
    end = tokenizer.convert_ids_to_tokens(end_of_turn(tokenizer))
    if reads_text:
        prompt = [f'prompt = "{BEGINNING}"']
        encoded = ['    ids = tokenizer(prompt)["input_ids"]']
    else:
        prompt = [f'prompt = [{{"role": "user", "content": "{QUESTION}"}}]']
        encoded = [
            "    text = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)",
            '    ids = tokenizer(text, add_special_tokens=False)["input_ids"]',
        ]
    return "\n".join(
        [
            *(["import torch"] if merged else []),
            *_loading(recipe, base, merged, "AutoModelForSequenceClassification", ["num_labels=1"]),
            f"end = tokenizer.convert_tokens_to_ids({end!r})  # what a response ends with",
            "",
            "",
            "def score(prompt, response):",
            *encoded,
            '    ids += tokenizer(response, add_special_tokens=False)["input_ids"] + [end]',
            "    with torch.no_grad():",
            "        return model(input_ids=torch.tensor([ids], device=model.device)).logits.item()",
            "",
            "",
            *prompt,
            f'print(score(prompt, "{RESPONSE}"))',
        ]
    )


def _loading(recipe: Recipe, base: str, merged: bool, auto: str, arguments: list[str]) -> list[str]:
    tokenizer = f'tokenizer = AutoTokenizer.from_pretrained("{PLACE}")'
    if merged:
        imports = f"from transformers import {auto}, AutoTokenizer"
        return [imports, "", f'model = {auto}.from_pretrained("{PLACE}")', tokenizer]
    model, trained_in = recipe.model, compute_dtype(recipe.model)  # in another type, scores are others
    quantization = {
        "nf4": f'load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant={model.double_quant}, '
        f"bnb_4bit_compute_dtype={trained_in}",
        "int8": "load_in_8bit=True",
        "none": "",
    }[model.quantization]
    revision = [f"revision={_literal(model.revision)}"] if model.revision else []
    arguments = [_literal(base), *revision, *arguments, f"dtype={trained_in}"]
    lines = [
        "import torch",
        "from peft import PeftModel",
        f"from transformers import {auto}, AutoTokenizer{', BitsAndBytesConfig' if quantization else ''}",
        "",
        tokenizer,
    ]
    if quantization:
        lines.append(f"quantization = BitsAndBytesConfig({quantization})")
        arguments.append("quantization_config=quantization")
    lines += [
        f"base = {auto}.from_pretrained({', '.join(arguments)})",
        f'model = PeftModel.from_pretrained(base, "{PLACE}").eval()',
    ]
    return lines
