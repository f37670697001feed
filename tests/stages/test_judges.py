"""`lorarlhf evaluate --judge`: another run's reward model, a classifier, a model behind an endpoint."""

import json
import shutil
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from demo_runs import DEMO, read_jsonl, run_with, save_random_adapter, small_recipe

from lorarlhf.cli.main import main
from lorarlhf.data.tokenize import encode_completion
from lorarlhf.data.tokenizer import end_of_turn
from lorarlhf.evaluation.policy import win_rate
from lorarlhf.evaluation.reward_model import RewardModel
from lorarlhf.run import Run
from lorarlhf.stages import judges
from lorarlhf.stages.export import export_run
from lorarlhf.stages.judges import classifier_ids, open_judge

PROMPTS = 4  # as many as `evaluation.json` shows


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with sft, reward and ppo, which says that PPO started from the base."""
    run = run_with(tmp_path_factory.mktemp("judged"), ("sft", "reward", "ppo"))
    run.write_summary("ppo", {"reference": "base"})
    return run


@pytest.fixture
def evaluate(monkeypatch, capsys, run, prompts, tmp_path):
    """`evaluate(*arguments)`: exit code, stdout, stderr, and what was written."""

    def call(*arguments):
        out = tmp_path / "evaluation.json"
        command = ["lorarlhf", "evaluate", "--run", run.path, "--dataset", prompts, "--out", out, *arguments]
        monkeypatch.setattr(sys, "argv", [str(part) for part in command])
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code or 0, *capsys.readouterr(), json.loads(out.read_text()) if out.exists() else None

    return call


class Endpoint(BaseHTTPRequestHandler):
    """An OpenAI-compatible server whose model `longer` prefers the longer response."""

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, asked, self.headers["Authorization"]))
        if asked["model"] != "longer":
            return self._answer(404, {"error": {"message": f"model {asked['model']} not found"}})
        text = asked["messages"][-1]["content"]
        said = "yes"
        if "<response_a>" in text:
            a, b = (text.split(f"<response_{name}>\n")[1].split(f"\n</response_{name}>")[0] for name in "ab")
            said = f"Longer is better.\nVerdict: {'A' if len(a) > len(b) else 'B' if len(b) > len(a) else 'tie'}"
        message = {"role": "assistant", "content": said}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        answer = {"id": "1", "object": "chat.completion", "created": 1, "model": "longer", "choices": [choice]}
        return self._answer(200, answer)

    def _answer(self, status, body):
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    server.requests = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def address(server):
    return f"http://127.0.0.1:{server.server_port}/v1"


def test_the_reward_model_of_another_run_on_another_base(evaluate, prompts, tiny_model, tmp_path):
    recipe, other = small_recipe(tmp_path, f"model.name={tiny_model('llama')}"), Run(tmp_path / "other")
    other.write_recipe(recipe, "reward")
    save_random_adapter(recipe, other, "reward")
    code, out, err, found = evaluate("--judge", other.path)
    assert code == 0, err
    judge = found["judge"]
    assert judge["name"] == str(other.path)
    assert set(judge["against"]) == {"base", "sft"}, "the reference, and where policies start from"
    asked = [row["prompt"] for row in read_jsonl(prompts)]
    model = RewardModel.from_run(other)
    after, before = (model.score(asked, [row[when] for row in found["samples"]]) for when in ("after", "before"))
    figures = judge["against"]["base"]
    assert figures["win_rate"] == win_rate(after, before)
    assert figures["score"] == pytest.approx(sum(after) / PROMPTS, abs=1e-5)
    assert figures["score_against"] == pytest.approx(sum(before) / PROMPTS, abs=1e-5)
    low, high = figures["win_rate_interval"]
    assert f"wins by judge      {figures['win_rate']:.1%} against base  (95%: {low:.1%} to {high:.1%}), " in out
    assert f"% against sft  (95%: {judge['against']['sft']['win_rate_interval'][0]:.1%}" in out
    assert f", judged by {other.path}" in out
    assert judge["against"]["sft"]["score"] == figures["score"]
    assert judge["against"]["sft"]["score_against"] != figures["score_against"]


def test_an_exported_reward_model_says_what_its_run_says(evaluate, run, prompts, tmp_path):
    export_run(run, tmp_path / "export", "reward", dtype="float32")
    code, _, err, found = evaluate("--judge", tmp_path / "export")
    assert code == 0, err
    asked = [row["prompt"] for row in read_jsonl(prompts)]
    own = RewardModel.from_run(run).score(asked, [row["after"] for row in found["samples"]])
    assert found["judge"]["against"]["base"]["score"] == pytest.approx(sum(own) / PROMPTS, abs=1e-2)


def test_how_a_classifier_reads_a_response(demo_backbone):
    tokenizer = demo_backbone.tokenizer
    prompt = [{"role": "user", "content": "Any mugs?"}]
    end = end_of_turn(tokenizer)
    asked, answered = encode_completion(tokenizer, prompt, "Yes.", end)
    assert classifier_ids(tokenizer, prompt, "Yes.", is_export=True) == asked + answered
    assert classifier_ids(tokenizer, "Any mugs?", "Yes.", is_export=True) == asked + answered
    whole = tokenizer.apply_chat_template([*prompt, {"role": "assistant", "content": "Yes."}], tokenize=False)
    assert tokenizer.decode(classifier_ids(tokenizer, prompt, "Yes.")) == whole
    tokenizer.chat_template = None
    assert classifier_ids(tokenizer, "Any mugs?", "Yes.") == tokenizer("Any mugs?", "Yes.")["input_ids"]


def test_a_model_behind_an_endpoint(evaluate, server, monkeypatch):
    pytest.importorskip("openai")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    url = address(server)
    code, out, err, found = evaluate("--judge", url.replace("//", "//me:pass@"), "--judge-model", "longer")
    assert code == 0, err
    figures = found["judge"]["against"]["base"]
    lengths = [[len(row[when]) for row in found["samples"]] for when in ("after", "before")]
    assert figures["win_rate"] == win_rate(*lengths)
    assert figures["unread"] == 0
    assert found["judge"]["name"] == f"longer at {url}"
    assert f", judged by longer at {url}" in out
    assert "judged 8/8" in out
    path, asked, authorization = server.requests[1]
    assert path == "/v1/chat/completions"
    assert asked["temperature"] == 0
    different = len(server.requests) - 1
    assert different % 2 == 0
    assert 0 < different <= 2 * 2 * PROMPTS, "both orders of each pair, against base and sft"
    assert authorization == "Bearer sk-secret" or authorization.startswith("Basic ")
    assert "secret" not in json.dumps(found) + out + err
    assert "pass" not in found["judge"]["name"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--judge", "URL", "--judge-model", "gone"], "model gone not found"),
        (["--judge", "http://127.0.0.1:9/v1", "--judge-model", "m"], "--judge http://127.0.0.1:9/v1: Connection error"),
        (["--judge", "URL"], "say with --judge-model which of its models is to judge"),
        (["--judge", "RUN"], "is the run itself, whose policy was trained against it; give another run"),
        (["--judge", "EMPTY"], "empty/reward: no adapter there; run `lorarlhf reward"),
        (["--judge", "gone/model"], "--judge gone/model: cannot load 'gone/model'"),
        (["--judge", DEMO / "model"], "ForCausalLM with 2 outputs gives no score; give a sequence classifier"),
        (["--judge", DEMO / "model", "--judge-model", "m"], "is a model of an endpoint, and --judge "),
        (["--judge-model", "m"], "--judge-model: goes with the address of an endpoint"),
        (["--judge", "OTHER"], "other/reward: the adapter was trained on shipped:demo/model, which has "),
        (["--judge", "JUDGE", "--stage", "reward"], "--judge: compares what policies respond"),
    ],
)
def test_faults_are_one_line_and_nothing_is_loaded(
    evaluate, run, server, monkeypatch, tmp_path, tiny_model, arguments, message
):
    if any(part in ("gone", "http://127.0.0.1:9/v1") for part in arguments):
        openai = pytest.importorskip("openai")
        monkeypatch.setattr(openai, "OpenAI", lambda real=openai.OpenAI, **options: real(max_retries=0, **options))
    for name in ("empty", "judge"):
        Run(tmp_path / name).write_recipe(run.read_recipe())
    save_random_adapter(run.read_recipe(), Run(tmp_path / "judge"), "reward")
    other = Run(tmp_path / "other")  # its reward adapter is from another model than its recipe says
    shutil.copytree(tmp_path / "judge", other.path)
    moved = run.read_recipe().model.model_copy(update={"name": str(tiny_model("llama"))})
    other.write_recipe(run.read_recipe().model_copy(update={"model": moved}))
    named = {
        "OTHER": other.path,
        "URL": address(server),
        "RUN": run.path,
        "EMPTY": tmp_path / "empty",
        "JUDGE": tmp_path / "judge",
    }
    monkeypatch.setattr("lorarlhf.stages.evaluate.load_backbone", lambda *args: pytest.fail("loaded"))
    code, out, err, _ = evaluate(*(named.get(part, part) for part in arguments))
    assert code == 2
    assert len(err.splitlines()) == 1
    assert message in err
    assert "Traceback" not in out + err


def test_without_the_client_a_line_says_how_to_install_it(evaluate, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    code, _, err, _ = evaluate("--judge", "http://localhost:1/v1", "--judge-model", "m")
    assert code == 2
    assert err.splitlines() == [
        "Error: --judge http://localhost:1/v1: an endpoint needs openai; install it with: pip install 'lorarlhf[judge]'"
    ]


def test_an_answer_that_is_none(server, monkeypatch):
    pytest.importorskip("openai")
    monkeypatch.setattr(Endpoint, "do_POST", lambda self: self._answer(200, {"hello": "world"}))
    with pytest.raises(judges.UserError, match="its answer is none of a chat model; give the address that ends in /v1"):
        open_judge(address(server), "longer")


def test_an_export_in_the_place_of_the_policy_is_judged_too(evaluate, run, tmp_path):
    export_run(run, tmp_path / "export", "ppo", dtype="float32")
    other = Run(tmp_path / "other")
    other.write_recipe(run.read_recipe(), "reward")
    save_random_adapter(run.read_recipe(), other, "reward")
    found = [evaluate("--judge", other.path, *more)[3] for more in ([], ["--model", tmp_path / "export"])]
    own, exported = (evaluation["judge"]["against"] for evaluation in found)
    assert set(own) == set(exported) == {"base", "sft"}
    for opponent, figures in own.items():
        assert exported[opponent]["score_against"] == figures["score_against"]
        assert exported[opponent]["score"] == pytest.approx(figures["score"], abs=0.05)
