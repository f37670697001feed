"use strict";

const MOST_CELLS = 25e6; // of the table of lengths: two texts of 5,000 words, a tenth of a second

/** Two texts as lists of `{text, differs}`: what differs is not in the other. Null for texts too long to compare. */
function difference(left, right) {
  const [a, b] = [words(left), words(right)];
  if ((a.length + 1) * (b.length + 1) > MOST_CELLS) {
    return null;
  }
  markUncommon(a, b);
  return [pieces(a), pieces(b)];
}

/** Words and punctuation as the browser divides them in any script, each with the white space after it. */
function words(text) {
  const found = [];
  for (const { segment } of new Intl.Segmenter(undefined, { granularity: "word" }).segment(text)) {
    if (found.length && !segment.trim()) {
      found.at(-1).space += segment;
    } else {
      found.push({ word: segment, space: "", differs: true });
    }
  }
  return found;
}

/** What is in a longest common subsequence does not differ: from its lengths, of a from i on and b from j on. */
function markUncommon(a, b) {
  const width = b.length + 1;
  const length = new Uint16Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i -= 1) {
    for (let j = b.length - 1; j >= 0; j -= 1) {
      const [here, below] = [i * width + j, (i + 1) * width + j];
      length[here] = a[i].word === b[j].word ? length[below + 1] + 1 : Math.max(length[below], length[here + 1]);
    }
  }
  for (let [i, j] = [0, 0]; i < a.length && j < b.length;) {
    if (a[i].word === b[j].word) {
      a[i++].differs = b[j++].differs = false;
    } else if (length[(i + 1) * width + j] >= length[i * width + j + 1]) {
      i += 1;
    } else {
      j += 1;
    }
  }
}

/** Neighbours that are alike in this as one piece. */
function pieces(list) {
  const joined = [];
  for (const { word, space, differs } of list) {
    if (joined.at(-1)?.differs === differs) {
      joined.at(-1).text += word + space;
    } else {
      joined.push({ text: word + space, differs });
    }
  }
  return joined;
}
