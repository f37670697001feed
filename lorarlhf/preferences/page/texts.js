"use strict";

// Texts come from models: they are only ever set as text, in elements out of this list.
const ELEMENTS = new Set([
  "p", "h4", "h5", "h6", "ul", "ol", "li", "blockquote", "pre", "code", "em", "strong", "s", "u", "br", "hr",
  "table", "thead", "tbody", "tr", "th", "td",
]);

/** Messages into an element, as Markdown where they have any and `raw` is false. `marked`, if given, has a list of
 * `{text, differs}` for each, and shows them as they stand. */
function messages(element, list, raw, marked) {
  const nodes = [];
  for (const [i, { role, content, markdown }] of list.entries()) {
    if (role && !(list.length === 1 && role !== "system")) {
      const speaker = document.createElement("h3");
      speaker.textContent = role;
      nodes.push(speaker);
    }
    nodes.push(text(marked ? marked[i].map(piece) : [content], raw || marked ? null : markdown));
  }
  element.replaceChildren(...nodes);
}

/** One text: its Markdown, if it has any, else what stands there. */
function text(plain, markdown) {
  const element = document.createElement(markdown ? "div" : "p");
  element.dir = "auto";
  element.lang = ""; // not known
  element.className = markdown ? "markdown" : "plain";
  element.append(...(markdown ? drawn(markdown) : plain));
  return element;
}

/** Nodes as `lorarlhf.preferences.markdown` makes them, as nodes of the page. */
function drawn(nodes) {
  return nodes.map((node) => {
    if (typeof node === "string") {
      return node;
    }
    if (!ELEMENTS.has(node.tag)) {
      throw new Error(`no element of a text: ${node.tag}`);
    }
    const element = document.createElement(node.tag);
    if (node.start !== undefined) {
      element.start = node.start;
    }
    element.append(...drawn(node.children));
    return element;
  });
}

function piece({ text: part, differs }) {
  const node = document.createElement(differs ? "mark" : "span");
  node.textContent = part;
  return node;
}
