// Where on a timeline what is written, in percent of its width. Like shared.js, it does nothing as an extension.
import { inTime } from "./keyframe_text.js";

const LEAST = 18; // percent that a label needs to say something
const TOO_LITTLE = 7; // percent
const MOST_TICKS = 9;

// From each keyframe to the next one. The last one, where the clip ends with it, is to the left of it and shares the room there. Where there is next to none, none.
export function labelPlaces(entries, frames) {
  const ordered = inTime(entries);
  const left = (frame) => (100 * (frame + 0.5)) / frames;
  const places = ordered.map((entry, number) => {
    const end = number + 1 < ordered.length ? left(ordered[number + 1].start) : 100;
    return { entry, left: left(entry.start), width: end - left(entry.start), last: false };
  });
  const [before, last] = places.slice(-2);
  if (last && last.width < LEAST && before.width >= 2 * LEAST) {
    before.width /= 2;
    Object.assign(last, { left: 100 - before.width, width: before.width, last: true });
  }
  return places.filter(({ width }) => width >= TOO_LITTLE);
}

export function frameTicks(frames) {
  const every = [1, 2, 5].map((factor) => [1, 10, 100, 1000].map((power) => factor * power)).flat();
  const gap = every.sort((a, b) => a - b).find((step) => frames / step <= MOST_TICKS);
  const ticks = Array.from({ length: Math.ceil(frames / gap) }, (_, number) => number * gap);
  const last = frames - 1;
  return [...ticks.filter((tick) => last - tick >= gap || tick === last), ...(last % gap ? [last] : [])];
}
