"""What `--judge` names, as a judge: another run's reward model, a classifier, a model behind an endpoint."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from rich.console import Console
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from lorarlhf.backbone.base import check_base, identify_base
from lorarlhf.backbone.load import load_model_config, load_tokenizer
from lorarlhf.data.rendering import render
from lorarlhf.data.rows import Demonstration, Prompt, in_turns, prompt_text, turns
from lorarlhf.data.special_tokens import escaped
from lorarlhf.data.tokenize import encode_completion
from lorarlhf.data.tokenizer import end_of_turn, has_chat_template
from lorarlhf.errors import UserError, first_line
from lorarlhf.evaluation.judge import Judge, ModelJudge, ScoringJudge
from lorarlhf.evaluation.reward_model import RewardModel
from lorarlhf.publishing.folder import MARKER
from lorarlhf.recipe.sections import ModelConfig
from lorarlhf.recipe.shipped import resolve_path
from lorarlhf.run import RECIPE, Run
from lorarlhf.stages.fidelity import classifier_scores

API_KEY = "OPENAI_API_KEY"


def open_judge(
    judge: str,
    model: str | None = None,
    run: Run | None = None,
    console: Console | None = None,
    allow_other_base: bool = False,
) -> Judge:
    """A judge by its name. It is seen that it is there; weights are loaded when it is asked.

    Args:
        judge: folder of a run with a reward adapter; Hub id or folder of a sequence classifier with one output; or
            address of an OpenAI-compatible endpoint, as `http://localhost:11434/v1`.
        model: what the endpoint is to answer with.
        run: whose policy is judged, which its own reward model cannot do.
        console: where progress is shown; None shows nothing.
        allow_other_base: also a run whose model is no longer the one that its reward adapter was trained on.

    Raises:
        UserError: it is none of the three, is the run itself, or does not answer.
    """
    if _is_address(judge):
        if model is None:
            raise UserError(f"--judge {_address(judge)}: say with --judge-model which of its models is to judge")
        return _endpoint(judge, model, console or Console(quiet=True))
    if model is not None:
        raise UserError(f"--judge-model: is a model of an endpoint, and --judge {judge} is no http:// address")
    return open_scoring_judge(judge, run, allow_other_base)


def open_scoring_judge(judge: str, run: Run | None = None, allow_other_base: bool = False) -> ScoringJudge:
    """A judge that gives each response a score: a run or a classifier, as `open_judge` takes them.

    Raises:
        UserError: it is neither, or the run itself.
    """
    if _is_address(judge):
        raise UserError(
            f"--judge {_address(judge)}: an endpoint compares, and gives no scores for --frontier to draw; give a "
            "run or a sequence classifier"
        )
    folder = Path(judge)
    if (folder / RECIPE).is_file():
        return _reward_of(Run(folder, trust=run is not None and run.trust), run, allow_other_base)
    return _classifier(judge)


def _reward_of(run: Run, judged: Run | None, allow_other_base: bool) -> ScoringJudge:
    if judged is not None and run.path.resolve() == judged.path.resolve():
        raise UserError(f"--judge {run.path}: is the run itself, whose policy was trained against it; give another run")
    adapter, config = run.adapter("reward"), run.read_recipe(stage="reward", runs_functions=False).model
    model_config = _known(str(run.path), config)
    if not allow_other_base:
        check_base(adapter, identify_base(config, getattr(model_config, "_commit_hash", None)))

    def score(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        return RewardModel.from_run(run, allow_other_base).score(prompts, texts)

    return ScoringJudge(str(run.path), score)


def _classifier(name: str) -> ScoringJudge:
    config = ModelConfig(name=name, quantization="none")
    model_config = _known(name, config)
    kinds = model_config.architectures or ["model of no kind"]
    if not kinds[0].endswith("ForSequenceClassification") or model_config.num_labels != 1:
        what = f"{kinds[0]} with {model_config.num_labels} outputs"
        raise UserError(f"--judge {name}: a {what} gives no score; give a sequence classifier with one, or a run")
    tokenizer = load_tokenizer(config)
    is_export = (Path(resolve_path(name)) / MARKER).is_file()

    def score(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        pairs = zip(prompts, texts, strict=True)
        rows = [classifier_ids(tokenizer, prompt, text, is_export) for prompt, text in pairs]
        scores: list[float] = classifier_scores(config, rows).tolist()
        return scores

    return ScoringJudge(name, score)


def _known(judge: str, config: ModelConfig) -> PreTrainedConfig:
    """What a judge's model says of itself. Raises UserError if there is no such model."""
    try:
        return load_model_config(config)
    except UserError as error:
        raise UserError(f"--judge {judge}: {str(error).removeprefix('model.name: ')}") from error


def classifier_ids(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, response: str, is_export: bool = False
) -> list[int]:
    """A prompt with its response as a reward model reads it.

    Reward models with a chat template were trained on whole conversations as that writes them, those without one on a
    pair of texts, and those that lorarlhf has exported on what PPO makes: prompt, response, end of turn.
    """
    if is_export:
        said = Demonstration(prompt, response)
        said = in_turns(said) if isinstance(prompt, str) and has_chat_template(tokenizer) else said
        asked, answered = encode_completion(tokenizer, said.prompt, said.completion, end_of_turn(tokenizer))
        return asked + answered
    if tokenizer.chat_template:
        conversation = escaped(tokenizer, [*turns(prompt, "user"), {"role": "assistant", "content": response}])
        text = render(tokenizer, conversation, add_generation_prompt=False)
        return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    pair = (escaped(tokenizer, text) for text in (prompt_text(prompt), response))
    return list(tokenizer(*pair, verbose=False)["input_ids"])


def _endpoint(url: str, model: str, console: Console) -> Judge:
    address = _address(url)
    try:
        import openai
    except ImportError as error:
        raise UserError(
            f"--judge {address}: an endpoint needs {error.name}; install it with: pip install 'lorarlhf[judge]'"
        ) from None
    # Most local servers want no key, and the client wants one.
    client = openai.OpenAI(base_url=url, api_key=os.environ.get(API_KEY) or "none")

    def ask(question: str) -> str:
        try:
            answer = client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": question}], temperature=0
            )
        except openai.OpenAIError as error:
            raise UserError(f"--judge {address}: {first_line(error)}; see that it runs and has {model!r}") from error
        choices = getattr(answer, "choices", None)  # the client checks no answer: a web page comes as text
        if not choices:
            raise UserError(f"--judge {address}: its answer is none of a chat model; give the address that ends in /v1")
        return choices[0].message.content or ""

    ask("Answer with the word yes.")  # whether it is there, before anything is loaded
    return ModelJudge(f"{model} at {address}", ask, console)


def _is_address(judge: str) -> bool:
    return judge.startswith(("http://", "https://"))


def _address(url: str) -> str:
    """An address fit to be written down: without user, password and query."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
