// The numbers of a curve's editor. Like shared.js, it does nothing as an extension.
import { lengthOf, nearestFree, nextFree, stretched } from "./keyframe_text.js";

// For Curve: what its text says, and its interpolation.
export const PRESETS = {
  Constant: ["0%: 1", "linear"],
  "Ramp up": ["0%: 0\n100%: 1", "linear"],
  "Ramp down": ["0%: 1\n100%: 0", "linear"],
  "Ease up": ["0%: 0\n100%: 1", "ease"],
  "Ease down": ["0%: 1\n100%: 0", "ease"],
  "Triangle pulse": ["0%: 0\n50%: 1\n100%: 0", "linear"],
  "Smooth pulse": ["0%: 0\n50%: 1\n100%: 0", "ease"],
  "Two waves": ["0%: 0\n25%: 1\n50%: 0\n75%: 1\n100%: 0", "ease"],
  "Fade in and out": ["0%: 0\n25%-75%: 1\n100%: 0", "linear"],
  "Hold, then fall": ["0%-50%: 1\n100%: 0", "linear"],
  "Rise, then hold": ["0%: 0\n50%-100%: 1", "linear"],
  "On in the middle": ["0%: 0\n25%: 1\n75%: 0", "step"],
};

// One for each end of each entry.
export function pointsOf(entries) {
  return entries.flatMap((entry, number) => {
    const value = Number(entry.value);
    if (entry.start === entry.end) return [{ number, end: "both", at: entry.start, value }];
    return ["start", "end"].map((end) => ({ number, end, at: entry[end], value }));
  });
}

// 0 and, unless all are small, 1 are in it, with room to drag a point further.
export function valueRange(values) {
  let low = Math.min(0, ...values);
  let high = Math.max(0, ...values);
  if (high - low < 1e-9 || (high > 0.1 && high < 1)) high = 1;
  const room = 0.12 * (high - low);
  if (low < 0) low -= room;
  return [low, high + room];
}

// A round number: a hundredth of the range or less.
export function rounded(value, [low, high]) {
  const step = 10 ** Math.floor(Math.log10((high - low) / 60));
  return Number((Math.round(value / step) * step).toPrecision(10));
}

export function stepOf([low, high]) {
  return 10 ** Math.floor(Math.log10((high - low) / 10)) / 2;
}

// Where an entry starts and ends when one of its points is wanted there; where it is, if it cannot move.
export function placedAt(text, entry, end, wanted) {
  if (!entry.ends) return [entry.start, entry.end];
  if (end === "start") return [stretched(text, entry, "start", wanted), entry.end];
  if (end === "end") return [entry.start, stretched(text, entry, "end", wanted)];
  const start = nearestFree(text, entry, wanted, lengthOf(entry));
  return start === null ? [entry.start, entry.end] : [start, start + lengthOf(entry)];
}

export function steppedTo(text, entry, end, direction) {
  if (!entry.ends) return [entry.start, entry.end];
  if (end !== "both") return placedAt(text, entry, end, Math.round(entry[end]) + direction);
  const start = nextFree(text, entry, direction);
  return start === null ? [entry.start, entry.end] : [start, start];
}

// Between the points of a line.
export function valueAt([xs, ys], x) {
  const after = xs.findIndex((each) => each >= x);
  if (after < 1) return ys.at(after);
  const share = (x - xs[after - 1]) / (xs[after] - xs[after - 1]);
  return (1 - share) * ys[after - 1] + share * ys[after];
}
