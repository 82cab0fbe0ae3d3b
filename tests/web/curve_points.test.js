import { placedAt, pointsOf, rounded, steppedTo, stepOf, valueAt, valueRange } from "../../web/curve_points.js";

const ends = [{ number: 0, percent: false }];
const single = { value: "0.5", start: 2, end: 2, ends };
const held = { value: "1e0", start: 5, end: 8, ends };
const text = { frames: 11, entries: [single, held] };

test("a point for each end", () => {
  expect(pointsOf(text.entries)).toEqual([
    { number: 0, end: "both", at: 2, value: 0.5 },
    { number: 1, end: "start", at: 5, value: 1 },
    { number: 1, end: "end", at: 8, value: 1 },
  ]);
});

test("the range has 0, mostly 1, and room", () => {
  const cases = { "0.5": [0, 1], "1,2": [0, 2], "-1,1": [-1, 1], "0": [0, 1], "0.01": [0, 0.01], "-3": [-3, 0] };
  for (const [values, [low, high]] of Object.entries(cases)) {
    const range = valueRange(values.split(",").map(Number));
    expect(range[0]).toBeCloseTo(low && low - 0.12 * (high - low), 9);
    expect(range[1]).toBeCloseTo(high + 0.12 * (high - low), 9);
  }
});

test("values are round, in steps that fit the range", () => {
  expect(rounded(0.123456, [0, 1.12])).toBe(0.12);
  expect(rounded(123.456, [0, 1120])).toBe(120);
  expect(rounded(-0.00123456, [-0.01, 0.01])).toBe(-0.0012);
  expect(stepOf([0, 1.12])).toBe(0.05);
});

test("points go where there is room, and those of a list only up and down", () => {
  expect(placedAt(text, single, "both", 6)).toEqual([4, 4]);
  expect(placedAt(text, held, "start", 0)).toEqual([3, 8]);
  expect(placedAt(text, held, "end", 99)).toEqual([5, 10]);
  expect(placedAt(text, single, "end", 3)).toEqual([2, 3]);
  expect(steppedTo(text, single, "both", 1)).toEqual([3, 3]);
  expect(steppedTo(text, held, "start", -1)).toEqual([4, 8]);
  expect(steppedTo(text, held, "end", 1)).toEqual([5, 9]);
  const listed = { value: "1", start: 3, end: 3, ends: null };
  expect(placedAt({ frames: 9, entries: [listed] }, listed, "both", 6)).toEqual([3, 3]);
  expect(steppedTo({ frames: 9, entries: [listed] }, listed, "both", 1)).toEqual([3, 3]);
});

test("between the points of a line", () => {
  const line = [[0, 2, 4], [1, 3, 0]]; // prettier-ignore
  expect([-1, 0, 1, 2, 3, 4, 9].map((x) => valueAt(line, x))).toEqual([1, 1, 2, 3, 1.5, 0, 0]);
});
