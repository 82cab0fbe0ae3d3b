import { added, deleted, moved, nearestFree, nextFree, redrawn, reworded, stretched } from "../../web/keyframe_text.js";

// What the server says of texts is tested with them, in tests/test_keyframes_route.py: here is where entries can go.
const entries = [
  { start: 0, end: 0 },
  { start: 4, end: 6 },
  { start: 7.5, end: 7.5 },
  { start: 11, end: 11 },
];
const text = { frames: 12, entries };
const [first, range, between, last] = entries;

describe("places", () => {
  test.each([
    [5, 3],
    [0, 1],
    [11, 10],
    [7, 7],
    [8, 8],
  ])("nearest to %i that is free is %i", (wanted, free) => expect(nearestFree(text, null, wanted)).toBe(free));

  test("an entry is not in its own way, and a held one needs room for all of it", () => {
    expect(nearestFree(text, range, 5, 2)).toBe(5);
    expect(nearestFree(text, range, 7, 2)).toBe(8);
    expect(nearestFree(text, range, 6, 2)).toBe(5);
    expect(nearestFree(text, range, 10, 2)).toBe(8);
    expect(nearestFree(text, range, 0, 2)).toBe(1);
    const full = Array.from({ length: 12 }, (_, start) => ({ start, end: start }));
    expect(nearestFree({ frames: 12, entries: full }, null, 3)).toBe(null);
  });

  test.each([
    [first, 1, 1],
    [first, -1, null],
    [range, 1, 5],
    [range, -1, 3],
    [between, 1, 8],
    [between, -1, 7],
    [last, 1, null],
    [last, -1, 10],
  ])("%j steps by %i to %s", (entry, direction, to) => expect(nextFree(text, entry, direction)).toBe(to));

  test("steps go over what is in the way", () => {
    const moving = { start: 7, end: 7 };
    expect(nextFree({ frames: 12, entries: [...entries, moving] }, moving, -1)).toBe(3);
  });

  test.each([
    [range, "end", 9, 7],
    [range, "end", 2, 4],
    [range, "start", 0, 1],
    [range, "start", 9, 6],
    [between, "end", 20, 10],
    [last, "end", 20, 11],
  ])("%j: its %s goes towards %i as far as %i", (entry, end, wanted, to) => expect(stretched(text, entry, end, wanted)).toBe(to));
});

describe("texts", () => {
  const written = "0: a, (b)\n# c\n8-15 = d # e\n";
  const letters = [...written];
  const place = (part) => [written.indexOf(part), written.indexOf(part) + part.length];
  const entry = (name, value, start, end, until) => ({
    value, start, end, comma: null, until: written.indexOf(until) + until.length,
    ends: [start, end].map((number) => ({ number, percent: false })),
    place: [place(name)[0], place(value)[1]], namePlace: place(name), valuePlace: place(value),
  }); // prettier-ignore
  const read = { letters, frames: 20, entries: [entry("0", "a, (b)", 0, 0, "(b)"), entry("8-15", "d", 8, 15, "# e")] };
  const [a, d] = read.entries;

  test.each([
    ["moved", moved(read, d, 9, 16), "0: a, (b)\n# c\n9-16 = d # e\n"],
    ["held no more", moved(read, d, 9, 9), "0: a, (b)\n# c\n9 = d # e\n"],
    ["held", moved(read, a, 0, 3), "0-3: a, (b)\n# c\n8-15 = d # e\n"],
    ["another prompt", reworded(read, a, "x, y "), "0: x, y\n# c\n8-15 = d # e\n"],
    ["one that needs quotes", reworded(read, a, 'a # "b"'), '0: "a # \\"b\\""\n# c\n8-15 = d # e\n'],
    ["none", reworded(read, d, ""), '0: a, (b)\n# c\n8-15 = "" # e\n'],
    ["another number", redrawn(read, d, 8, 16, 0.5), "0: a, (b)\n# c\n8-16 = 0.5 # e\n"],
    ["added behind", added(read, 18, "z"), "0: a, (b)\n# c\n8-15 = d # e\n18 = z\n"],
    ["added between", added(read, 4, "z"), "0: a, (b)\n4: z\n# c\n8-15 = d # e\n"],
    ["deleted", deleted(read, a), "# c\n8-15 = d # e\n"],
  ])("%s", (_, found, expected) => expect(found).toBe(expected));
});
