import { frameTicks, labelPlaces } from "../../web/timeline_layout.js";

test.each([
  [1, [0]],
  [5, [0, 1, 2, 3, 4]],
  [16, [0, 2, 4, 6, 8, 10, 12, 15]],
  [48, [0, 10, 20, 30, 47]],
  [10000, [0, 2000, 4000, 6000, 9999]],
])("%i frames have these numbers below them", (frames, ticks) => expect(frameTicks(frames)).toEqual(ticks));

test("a label has the room up to the next one, whatever the order", () => {
  const entries = [{ start: 5 }, { start: 0 }];
  const [first, second] = labelPlaces(entries, 10);
  expect([first.entry, first.left, first.width]).toEqual([entries[1], 5, 50]);
  expect([second.entry, second.left, second.width]).toEqual([entries[0], 55, 45]);
});

test("a keyframe at the end has half of the room before it", () => {
  const [first, last] = labelPlaces([{ start: 0 }, { start: 9 }], 10);
  expect(first.width).toBe(45);
  expect(last).toMatchObject({ left: 55, width: 45, last: true });
  expect(labelPlaces([{ start: 8 }, { start: 9 }], 10)).toHaveLength(1);
  expect(labelPlaces([{ start: 8 }], 10)[0].last).toBe(false);
});
