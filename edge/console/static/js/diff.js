/** Finds the words of one text that another does not have: a longest common subsequence over words. */

const MOST_CELLS = 4e6; // beyond it, comparing would stop the page

/**
 * The ranges of `text` whose words are not in `reference`, in order.
 * @param {string} text @param {string} reference
 * @returns {[number, number][]} pairs of begin and end, in characters
 */
export function differing(text, reference) {
  const ours = words(text);
  const theirs = words(reference).map(({ word }) => word);
  const head = shared(ours, theirs);
  const middle = ours.slice(head);
  const other = theirs.slice(head);
  if (middle.length * other.length > MOST_CELLS) return middle.map(({ begin, end }) => [begin, end]);
  const kept = common(
    middle.map(({ word }) => word),
    other,
  );
  return middle.filter((_, index) => !kept.has(index)).map(({ begin, end }) => [begin, end]);
}

/** @param {string} text */
function words(text) {
  return [...text.matchAll(/[\p{L}\p{N}]+|[^\s\p{L}\p{N}]/gu)].map((match) => {
    return { word: match[0], begin: match.index, end: match.index + match[0].length };
  });
}

/** The length of the common beginning. @param {{word: string}[]} ours @param {string[]} theirs */
function shared(ours, theirs) {
  let length = 0;
  while (length < Math.min(ours.length, theirs.length) && ours[length].word === theirs[length]) length++;
  return length;
}

/** The indices in `a` of a longest common subsequence. @param {string[]} a @param {string[]} b @returns {Set<number>} */
function common(a, b) {
  const width = b.length + 1;
  const longest = new Uint32Array((a.length + 1) * width); // of the rests that begin at row and column
  for (let i = a.length - 1; i >= 0; i--)
    for (let j = b.length - 1; j >= 0; j--)
      longest[i * width + j] =
        a[i] === b[j]
          ? longest[(i + 1) * width + j + 1] + 1
          : Math.max(longest[(i + 1) * width + j], longest[i * width + j + 1]);
  const kept = new Set();
  for (let i = 0, j = 0; i < a.length && j < b.length;) {
    if (a[i] === b[j]) {
      kept.add(i);
      i++;
      j++;
    } else if (longest[(i + 1) * width + j] >= longest[i * width + j + 1]) i++;
    else j++;
  }
  return kept;
}
