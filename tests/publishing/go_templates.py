"""As much of Go's text/template as a Modelfile of ours uses, read by its documentation; and Go itself, where it is."""

import json
import re
import subprocess
from pathlib import Path

PROGRAM = """package main

import ("encoding/json"; "os"; "strings"; "text/template")

func main() {
	var jobs []struct { Template string; Messages []map[string]any }
	if err := json.NewDecoder(os.Stdin).Decode(&jobs); err != nil { panic(err) }
	texts := []string{}
	for _, job := range jobs {
		var system []string
		for _, m := range job.Messages {
			if m["Role"] == "system" { system = append(system, m["Content"].(string)) }
		}
		data := map[string]any{"System": strings.Join(system, "\\n\\n"), "Messages": job.Messages}
		var text strings.Builder
		if err := template.Must(template.New("").Parse(job.Template)).Execute(&text, data); err != nil { panic(err) }
		texts = append(texts, text.String())
	}
	json.NewEncoder(os.Stdout).Encode(texts)
}
"""


def as_ollama(conversation):
    """What Ollama hands to a template."""
    system = [message["content"] for message in conversation if message["role"] == "system"]
    messages = [{"Role": message["role"], "Content": message["content"]} for message in conversation]
    return {"System": "\n\n".join(system), "Messages": messages}


def rendered_by_go(folder: Path, template, conversations):
    """Texts of conversations by `go run`."""
    (folder / "main.go").write_text(PROGRAM)
    jobs = [{"Template": template, "Messages": as_ollama(each)["Messages"]} for each in conversations]
    call = ["go", "run", str(folder / "main.go")]
    return json.loads(subprocess.run(call, input=json.dumps(jobs), capture_output=True, text=True, check=True).stdout)


def rendered(template, conversation):
    """The text of one conversation by the interpreter below."""
    parts = re.split(r"\{\{(-?) (.*?) \}\}", template)  # text, trims, action, text, ...
    for at in range(1, len(parts), 3):
        if parts[at]:
            parts[at - 1] = parts[at - 1].rstrip()
    tokens = [("text", parts[0])]
    for action, text in zip(parts[2::3], parts[3::3], strict=True):
        tokens += [("action", action), ("text", text)]
    tree, rest = _block(tokens)
    assert not rest
    out: list[str] = []
    _run(tree, as_ollama(conversation), {}, out)
    return "".join(out)


def _block(tokens):
    """Nodes up to the `end` or `else` that closes the block, which is left in front of the rest."""
    nodes = []
    while tokens:
        (kind, body), tokens = tokens[0], tokens[1:]
        if kind == "action" and re.match(r"(end|else)\b", body):
            return nodes, [(kind, body), *tokens]
        if kind == "action" and re.match(r"(if|range)\b", body):
            node, tokens = _branch(body, tokens)
            nodes.append(node)
        else:
            nodes.append((kind, body))
    return nodes, []


def _branch(body, tokens):
    word, _, pipe = body.partition(" ")
    then, ((_, closing), *tokens) = _block(tokens)
    if closing == "end":
        return (word, pipe, then, []), tokens
    if closing == "else":
        other, (_, *tokens) = _block(tokens)
        return (word, pipe, then, other), tokens
    node, tokens = _branch(closing.removeprefix("else "), tokens)
    return (word, pipe, then, [node]), tokens


def _run(nodes, dot, variables, out):
    for node in nodes:
        if node[0] == "text":
            out.append(node[1])
        elif node[0] == "range":
            for item in _value(node[1], dot, variables):
                _run(node[2], item, variables, out)
        elif node[0] == "if":
            _run(node[2] if _value(node[1], dot, variables) else node[3], dot, variables, out)
        elif assigned := re.fullmatch(r"(\$\w+) :?= (.*)", node[1]):
            variables[assigned[1]] = _value(assigned[2], dot, variables)
        else:
            out.append(_value(node[1], dot, variables))


def _value(pipe, dot, variables):
    if pipe.startswith('"'):
        return json.loads(re.sub(r"\\U([0-9a-f]{8})", lambda mark: chr(int(mark[1], 16)), pipe))
    if pipe.startswith("eq "):
        left, right = pipe.removeprefix("eq ").split(" ", 1)
        return _value(left, dot, variables) == _value(right, dot, variables)
    return variables[pipe] if pipe.startswith("$") else dot[pipe.removeprefix(".")]
