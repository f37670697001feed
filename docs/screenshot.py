"""Make docs/collect.png, the picture of the labelling page: `python docs/screenshot.py`; needs chromium."""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

PICTURE = Path(__file__).resolve().with_name("collect.png")
PROMPT = "How do I count the lines of a file in Python?"
SHORT = "Open it and look at the last line's number. **Editors show it** at the bottom."
LONG = """\
Let the file count for you, without reading it whole:

```python
with open("eggs.txt") as file:
    print(sum(1 for _ in file))
```

- It works for files of *any* size.
- An empty file has `0` lines.
"""
KEYS = ("ArrowLeft", "ArrowRight", "2", "ArrowLeft", "t", "2")  # what is pressed before the picture is taken

with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
    pairs, labels = Path(folder, "pairs.jsonl"), Path(folder, "labels.jsonl")
    rows = [{"prompt": PROMPT, "response_a": SHORT, "response_b": f"{LONG}{' ' * i}"} for i in range(20)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    command = [sys.executable, "-m", "lorarlhf", "collect", "--no-open", "--annotator", "ann"]
    command += ["--pairs", str(pairs), "--out", str(labels)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        link = next(line for line in server.stdout if "http://" in line).split()[-1]
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": 1100, "height": 600})
        page.clock.install()
        page.goto(link)
        for key in KEYS:
            page.wait_for_selector("body:not([aria-busy]) #left > *")
            page.clock.fast_forward(7000)  # milliseconds that somebody might take
            page.keyboard.press(key)
        page.wait_for_selector("body:not([aria-busy]) [data-strength='2'][aria-pressed=true]")
        page.screenshot(path=PICTURE)
        chromium.close()
        server.terminate()
