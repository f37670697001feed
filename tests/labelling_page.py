"""A server of the labelling page (or another) in a process of its own, what it shows, and someone who answers."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import httpx2 as httpx

from lorarlhf.demo.world import gold_score
from lorarlhf.preferences.labels import read_labels


class Running:
    """A server in a process of its own, and the link it printed."""

    def __init__(self, *args, command="collect"):
        command = [sys.executable, "-c", "from lorarlhf.cli.main import main; main()", command, "--no-open"]
        self.process = subprocess.Popen(
            [*command, *map(str, args)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        self.printed = []
        while "Ctrl-C" not in (self.printed or [""])[-1]:
            line = self.process.stdout.readline()
            assert line, "".join(self.printed)
            self.printed.append(line.strip())
        self.link = next(line for line in self.printed if "http://" in line).split()[-1]

    def stop(self, signal):
        self.process.send_signal(signal)
        rest, _ = self.process.communicate(timeout=20)
        return rest


def saved(page, done, total):
    """Wait until the page says so: then it must be on disk."""
    from playwright.sync_api import expect

    expect(page.locator("#done")).to_have_text(f"{done} of {total}")


def shown(page):
    return {side: page.locator(f"#{side}").inner_text() for side in ("left", "right")}


def choices(labels_path):
    return [label.choice for label in read_labels(labels_path)]


def label(link: str, annotator: str, count: int, noise: float, seed: int) -> None:
    """Give `count` answers by the gold rule through the page's interface; of choices, the share `noise` is flipped."""
    draw = random.Random(seed)
    with httpx.Client(base_url=link) as client:
        reply = client.get("api/next", params={"annotator": annotator})
        for _ in range(count):
            task = reply.raise_for_status().json()["task"]
            answer = {"task": task["id"], "pair_id": task["pair_id"], "choice": _choice(task, noise, draw)}
            reply = client.post("api/label", json=answer | {"annotator": annotator, "seconds": 4.0})
        reply.raise_for_status()


def _choice(task: dict, noise: float, draw: random.Random) -> str:
    question = task["prompt"][-1]["content"]
    left, right = (gold_score(question, task[side][-1]["content"]) for side in ("left", "right"))
    if left == right:
        return "tie"
    return "left" if (left > right) != (draw.random() < noise) else "right"
