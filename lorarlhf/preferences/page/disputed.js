"use strict";

/** The pairs that people are most divided on, each with a button that has it asked again by `reopen(pair_id)`. */
function listDisputes(element, disputes, reopen) {
  element.replaceChildren(...disputes.map((dispute) => {
    const item = document.createElement("li");
    const prompt = document.createElement("div");
    prompt.className = "messages";
    messages(prompt, dispute.prompt, false);
    const sides = document.createElement("div");
    sides.className = "sides";
    sides.append(side("Left", dispute.left, dispute.votes.left), side("Right", dispute.right, dispute.votes.right));
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Open again";
    button.addEventListener("click", () => reopen(dispute.pair_id));
    item.append(prompt, sides, ...(dispute.votes.tie ? [`${dispute.votes.tie} for neither `] : []), button);
    return item;
  }));
}

function side(name, response, votes) {
  const section = document.createElement("section");
  const heading = document.createElement("h3");
  heading.textContent = `${name}: ${votes} for it`;
  const texts = document.createElement("div");
  texts.className = "messages";
  messages(texts, response, false);
  section.append(heading, texts);
  return section;
}
