"""Where an iteration's time goes, by function: stacks that py-spy has sampled, drawn as an SVG.

    pip install py-spy
    py-spy record --format raw --function --output after.txt -- python benchmarks/ppo.py --model cpu --algorithm rloo \\
        --dtype float32 --top-layers 0.5 --processor-time
    python benchmarks/flame.py --graph before.txt 12.5 "before" --graph after.txt 9.8 "after" --out docs/flame.svg

A graph is a file of stacks, the seconds of an iteration as ppo.py has found them, and a title; all have one scale. Only
what the loop's iteration calls counts, all iterations together: the width of a box is its share of their samples, and
what a box calls hangs below it. Calls into compiled code belong to the function that makes them.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

FRAME = re.compile(r"(?P<name>.+) \((?P<file>.+?)(?::\d+)?\)")
ROOT = "_iteration"  # of lorarlhf/rl/loop.py
# What every call of a module and every backward pass goes through, and says nothing.
PASSED_THROUGH = re.compile(r"_call_impl|<locals>\.|_engine_run_backward|Function\.apply|Accelerator\.|__call__")
COLOURS = {"lorarlhf": "#7fc4cf", "transformers": "#f2cf8d", "bitsandbytes": "#e8a0a8", "torch": "#c9c9c9"}
OTHER = "#e3e3e3"
WIDTH, ROW, LETTER, LEAST = 960, 16, 6.2, 1.5  # pixels: a letter's width is a guess, narrower boxes are left out


@dataclass
class Box:
    """A function where it was called from, with the samples in it and below."""

    name: str
    file: str
    samples: int = 0
    calls: dict[str, Box] = field(default_factory=dict)

    @property
    def depth(self) -> int:
        return 1 + max((box.depth for box in self.calls.values()), default=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graph", nargs=3, action="append", required=True, metavar=("STACKS", "SECONDS", "TITLE"))
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    graphs = [
        (tree_of(Path(stacks).read_text(encoding="utf-8").splitlines()), float(seconds), title)
        for stacks, seconds, title in args.graph
    ]
    args.out.write_text(draw(graphs), encoding="utf-8")


def tree_of(lines: Iterable[str]) -> Box:
    """The iteration as the root, from lines of py-spy's `raw` format: frames from the outermost, and a count."""
    root = Box("iteration", "lorarlhf/rl/loop.py")
    for line in lines:
        stack, _, count = line.rpartition(" ")
        frames = [match.group("name", "file") for match in map(FRAME.fullmatch, stack.split(";")) if match]
        start = next((place for place, (name, _) in enumerate(frames) if name == ROOT), None)
        if start is None:
            continue
        box = root
        box.samples += int(count)
        for name, file in frames[start + 1 :]:
            if not PASSED_THROUGH.search(name):
                box = box.calls.setdefault(f"{name} {file}", Box(name, module_path(file)))
                box.samples += int(count)
    return root


def module_path(file: str) -> str:
    """A file as it is imported: nothing of the machine that it lies on."""
    inside = re.sub(r".*/(?:site-packages|python3\.\d+)/", "", file)
    return inside.rpartition("/")[2] if inside.startswith("/") else inside


def draw(graphs: list[tuple[Box, float, str]]) -> str:
    """The graphs one below the other, a second as wide in each."""
    scale = WIDTH / max(seconds for _, seconds, _ in graphs)
    parts, top = [legend()], 2.0 * ROW
    for root, seconds, title in graphs:
        parts.append(f'<text x="2" y="{top + 11:.0f}" font-weight="bold">{escape(title)}: {seconds:.1f} s</text>')
        per_sample = seconds / root.samples
        parts += boxes(root, 0.0, top + ROW, scale * per_sample, per_sample)
        top += (root.depth + 2) * ROW
    size = f'viewBox="0 0 {WIDTH} {top:.0f}" font-family="sans-serif" font-size="10"'
    paper = '<rect width="100%" height="100%" fill="white"/>'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{paper}', *parts, "</svg>\n"])


def boxes(box: Box, left: float, top: float, pixels: float, seconds: float) -> Iterator[str]:
    """The box and what hangs below it, by name, so that graphs compare; `pixels` and `seconds` are of a sample."""
    width = box.samples * pixels
    if width < LEAST:
        return
    fill = COLOURS.get(box.file.partition("/")[0], OTHER)
    hint = escape(f"{box.name} ({box.file}): {box.samples * seconds:.2f} s")
    yield (
        f'<rect x="{left:.1f}" y="{top:.0f}" width="{width:.1f}" height="{ROW - 1}" fill="{fill}" stroke="white" '
        f'stroke-width=".5"><title>{hint}</title></rect>'
    )
    letters = int((width - 4) / LETTER)
    if letters >= 4:
        yield f'<text x="{left + 2:.1f}" y="{top + 11:.0f}">{escape(box.name[:letters])}</text>'
    for called in sorted(box.calls.values(), key=lambda called: called.name):
        yield from boxes(called, left, top + ROW, pixels, seconds)
        left += called.samples * pixels


def legend() -> str:
    entries = [
        f'<rect x="{2 + 110 * place}" y="4" width="10" height="10" fill="{colour}"/>'
        f'<text x="{16 + 110 * place}" y="13">{name}</text>'
        for place, (name, colour) in enumerate({**COLOURS, "others": OTHER}.items())
    ]
    return "\n".join(entries)


if __name__ == "__main__":
    main()
