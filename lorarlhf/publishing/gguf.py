"""GGUF, what llama.cpp and Ollama load: made by the converter and the quantiser of a clone of llama.cpp."""

from __future__ import annotations

import importlib.util
import logging
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lorarlhf.errors import UserError, first_line

logger = logging.getLogger(__name__)
GGUFType = Literal["f16", "q8_0", "q4_k_m"]
QUANTIZER = "llama-quantize"
# Where a clone's own build, an older one's and one for Windows leave it.
BUILDS = ("build/bin", ".", "build/bin/Release")


@dataclass(frozen=True)
class Converter:
    """Scripts that are there and start.

    Attributes:
        kind: how weights are kept.
        script: reads a folder of safetensors.
        quantizer: makes `q4_k_m` of f16; None where the script writes the kind itself.
    """

    kind: GGUFType
    script: Path
    quantizer: Path | None

    def write(self, source: Path, to: Path) -> None:
        """Make the file `to` of a merged model's folder.

        Raises:
            UserError: what the converter or the quantiser ended with.
        """
        logger.info("llama.cpp writes %s", to.name)
        if self.quantizer is None:
            self._convert(source, to, self.kind)
            return
        between = to.with_name(f".{to.stem}-f16.gguf")
        self._convert(source, between, "f16")
        _run([str(self.quantizer), str(between), str(to), self.kind.upper()], self.quantizer)
        between.unlink()

    def write_adapter(self, source: Path, to: Path, base: str) -> None:
        """Make the file `to` of an adapter's folder.

        Args:
            base: folder or Hub id of the base model, of which the config alone is read.
        """
        named = ["--base", base] if Path(base).is_dir() else ["--base-model-id", base]
        self._convert(source, to, self.kind, *named)

    def _convert(self, source: Path, to: Path, kind: str, *options: str) -> None:
        call = [sys.executable, str(self.script), str(source), "--outfile", str(to), "--outtype", kind, *options]
        _run(call, self.script)
        if not to.is_file():
            raise UserError(f"{self.script}: ended well and wrote no {to.name}; take another release of llama.cpp")


def find_converter(llama_cpp: Path, kind: GGUFType, architecture: str, adapter: bool = False) -> Converter:
    """The converter in a clone of llama.cpp, once it has been seen to start and to know the model.

    Args:
        architecture: as `config.json` of the base model names it.
        adapter: of an adapter alone, not of a merged model.

    Raises:
        UserError: something of that is not so; the line says what to do.
    """
    if adapter and kind == "q4_k_m":
        raise UserError("--gguf q4_k_m: llama.cpp keeps adapters as f16 or q8_0; use --gguf q8_0")
    script = llama_cpp / ("convert_lora_to_gguf.py" if adapter else "convert_hf_to_gguf.py")
    if not script.is_file():
        raise UserError(
            f"--llama-cpp {llama_cpp}: no {script.name} there; "
            "`git clone https://github.com/ggml-org/llama.cpp`, and give the folder of that clone"
        )
    if importlib.util.find_spec("sentencepiece") is None:
        raise UserError("--gguf: the converter of llama.cpp needs sentencepiece; `pip install sentencepiece`")
    known = _run([sys.executable, str(llama_cpp / "convert_hf_to_gguf.py"), "--print-supported-models"], script).split()
    if architecture not in known:
        raise UserError(
            f"--gguf: this llama.cpp has no converter for {architecture}; pull a newer one, or leave it out"
        )
    return Converter(kind, script, _quantizer(llama_cpp) if kind == "q4_k_m" else None)


def _quantizer(llama_cpp: Path) -> Path:
    places = [str(llama_cpp / place) for place in BUILDS]
    found = next((path for place in places if (path := shutil.which(QUANTIZER, path=place))), None)
    found = found or shutil.which(QUANTIZER)
    if found is None:
        raise UserError(
            f"--gguf q4_k_m: no {QUANTIZER} in {llama_cpp}/build/bin nor on the PATH; `cmake -B build && cmake --build "
            f"build --target {QUANTIZER}` in {llama_cpp}, or use --gguf q8_0, which needs none"
        )
    return Path(found)


def _run(call: list[str], program: Path) -> str:
    """Everything that a program prints. Raises UserError with the last thing it said if it fails."""
    try:
        done = subprocess.run(call, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise UserError(f"{program}: cannot be started: {first_line(error)}; build llama.cpp anew") from error
    if done.returncode:
        said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        reason = said[-1].strip() if said else f"exit code {done.returncode}"
        raise UserError(f"{program}: {reason}; mend that in the clone of llama.cpp, or leave out --gguf")
    return done.stdout + done.stderr
