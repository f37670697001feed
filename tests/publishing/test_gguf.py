"""GGUF by a clone of llama.cpp: here a stand-in, whose scripts look at what they are asked."""

import os
import sys
import textwrap

import pytest

from lorarlhf.errors import UserError
from lorarlhf.publishing import gguf
from lorarlhf.publishing.gguf import find_converter
from lorarlhf.stages.export import export, export_run

# Writes what it was told and what lay in the folder; ends as the real one does where a folder is no model's.
SCRIPT = """
import json, sys
from pathlib import Path
if sys.argv[1:] == ["--print-supported-models"]:
    print("Supported models:\\n  - LlamaForCausalLM\\n  - Qwen3ForCausalLM", file=sys.stderr)
    sys.exit()
source, flag, out, *rest = sys.argv[1:]
assert flag == "--outfile", flag
names = sorted(path.name for path in Path(source).iterdir())
if "model.safetensors" not in names and "adapter_model.safetensors" not in names:
    print("INFO: looking\\nno weights in there", file=sys.stderr)
    sys.exit(1)
Path(out).write_text(json.dumps({"by": Path(sys.argv[0]).name, "rest": rest}))
"""
QUANTIZER = """#!%s
import sys
from pathlib import Path
source, out, kind = sys.argv[1:]
Path(out).write_text(f"{kind} of {Path(source).read_text()}")
"""


@pytest.fixture(autouse=True)
def _sentencepiece(monkeypatch):
    """Which the real scripts need and these do not."""
    found = gguf.importlib.util.find_spec
    monkeypatch.setattr(gguf.importlib.util, "find_spec", lambda name: name == "sentencepiece" or found(name))


@pytest.fixture
def clone(tmp_path):
    """Folder of the stand-in, without a quantiser."""
    folder = tmp_path / "llama.cpp"
    folder.mkdir()
    for name in ("convert_hf_to_gguf.py", "convert_lora_to_gguf.py"):
        (folder / name).write_text(textwrap.dedent(SCRIPT))
    return folder


def add_quantizer(clone):
    program = clone / "build" / "bin" / "llama-quantize"
    program.parent.mkdir(parents=True)
    program.write_text(QUANTIZER % sys.executable)
    program.chmod(0o755)


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_a_merged_policy_with_its_gguf_and_modelfile(make_run, clone, tmp_path, kind):
    run, out = make_run(["ppo"]), tmp_path / "out"
    export_run(run, out, "ppo", gguf=kind, llama_cpp=clone)
    made = (out / f"model-{kind}.gguf").read_text()
    assert made == f'{{"by": "convert_hf_to_gguf.py", "rest": ["--outtype", "{kind}"]}}'
    assert f"FROM ./model-{kind}.gguf\n" in (out / "Modelfile").read_text()
    assert f'"model-{kind}.gguf"' in (out / "lorarlhf_export.json").read_text()
    assert "## Ollama" in (out / "README.md").read_text()
    export_run(run, out, "ppo")  # takes the place of an earlier one, GGUF and all
    assert not (out / f"model-{kind}.gguf").exists()
    assert "FROM .\n" in (out / "Modelfile").read_text()


def test_four_bits_are_made_of_sixteen(clone, tmp_path):
    add_quantizer(clone)
    source = tmp_path / "model"
    source.mkdir()
    (source / "model.safetensors").touch()
    find_converter(clone, "q4_k_m", "LlamaForCausalLM").write(source, source / "model-q4_k_m.gguf")
    assert (source / "model-q4_k_m.gguf").read_text().startswith('Q4_K_M of {"by": "convert_hf_to_gguf.py"')
    assert sorted(os.listdir(source)) == ["model-q4_k_m.gguf", "model.safetensors"]


def test_an_adapter_alone(make_run, clone, tmp_path):
    run, out = make_run(["ppo"]), tmp_path / "out"
    export_run(run, out, "ppo", merge=False, gguf="f16", llama_cpp=clone)
    made = (out / "adapter-f16.gguf").read_text()
    assert '"by": "convert_lora_to_gguf.py", "rest": ["--outtype", "f16", "--base", "' in made
    assert "FROM ./base.gguf\nADAPTER ./adapter-f16.gguf\n" in (out / "Modelfile").read_text()


def test_a_reward_model_has_no_modelfile(make_run, tmp_path):
    export_run(make_run(["reward"]), tmp_path / "out", "reward", merge=False)
    assert not (tmp_path / "out" / "Modelfile").exists()
    assert "## Ollama" not in (tmp_path / "out" / "README.md").read_text()


@pytest.fixture
def nothing_is_merged(monkeypatch):
    def merge(*_):
        raise AssertionError("a model was merged")

    monkeypatch.setattr(sys.modules["lorarlhf.stages.export"], "_write_compared", merge)


def without(name):
    return lambda clone: (clone / name).unlink()


def with_script(text):
    return lambda clone: (clone / "convert_hf_to_gguf.py").write_text(text)


@pytest.mark.usefixtures("nothing_is_merged")
@pytest.mark.parametrize(
    ("kind", "merge", "breaks", "message"),
    [
        ("f16", True, without("convert_hf_to_gguf.py"), "no convert_hf_to_gguf.py there"),
        ("f16", False, without("convert_lora_to_gguf.py"), "no convert_lora_to_gguf.py there"),
        ("q4_k_m", True, lambda clone: None, "no llama-quantize in .*use --gguf q8_0"),
        ("q4_k_m", False, lambda clone: None, "adapters as f16 or q8_0"),
        ("f16", True, with_script("import gguf_of_old"), "gguf_of_old"),
        (
            "f16",
            True,
            with_script("print('- None')"),
            "no converter for",
        ),
    ],
)
def test_what_is_missing_is_told_before_anything_is_merged(make_run, clone, tmp_path, kind, merge, breaks, message):
    breaks(clone)
    with pytest.raises(UserError, match=message):
        export_run(make_run(["ppo"]), tmp_path / "out", "ppo", merge=merge, gguf=kind, llama_cpp=clone)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("nothing_is_merged")
def test_what_cannot_be_is_told_first(make_run, clone, tmp_path, monkeypatch):
    run = make_run(["reward", "ppo"])
    with pytest.raises(UserError, match="no form for a reward model's score"):
        export(run, tmp_path / "out", "reward", gguf="f16", llama_cpp=clone)
    with pytest.raises(UserError, match="give its folder with --llama-cpp"):
        export(run, tmp_path / "out", "ppo", gguf="f16")
    monkeypatch.setattr(gguf.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install sentencepiece"):
        export(run, tmp_path / "out", "ppo", gguf="f16", llama_cpp=clone)


def test_what_the_converter_ends_with_is_told(clone, tmp_path):
    (tmp_path / "empty").mkdir()
    converter = find_converter(clone, "q8_0", "LlamaForCausalLM")
    with pytest.raises(UserError, match=r"convert_hf_to_gguf\.py: no weights in there; "):
        converter.write(tmp_path / "empty", tmp_path / "empty" / "model.gguf")
