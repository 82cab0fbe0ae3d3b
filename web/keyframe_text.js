// The edits of a text of keyframes, each of one entry; the rest stays as it is written. nodes/keyframes_route.py says where
// the entries are: text.letters are its characters, as the server counts them. Like shared.js, it does nothing as an extension.

const DECIMALS = 6;

export function moved(text, entry, start, end) {
  return spliced(text, renamed(text, entry, start, end));
}

// Moved, and with another number; of a list only that.
export function redrawn(text, entry, start, end, number) {
  const changes = number === Number(entry.value) ? [] : [[...entry.valuePlace, String(number)]];
  if (start !== entry.start || end !== entry.end) changes.push(renamed(text, entry, start, end));
  return spliced(text, ...changes);
}

// A prompt in quotes stays in them; another gets them when it needs them.
export function reworded(text, entry, prompt) {
  const [start, end] = entry.valuePlace;
  const quoted = isQuoted(text, entry) || !isPlain(prompt);
  const written = quoted ? escaped(prompt, !entry.namePlace || text.letters[entry.place[0]] === '"') : prompt.trim();
  return spliced(text, [start, end, quoted && !isQuoted(text, entry) ? `"${written}"` : written]);
}

export function canAdd(text) {
  return text.entries.every((entry) => entry.namePlace);
}

// Written as its neighbour in time is, behind it; or before it, where it is the first. value: a prompt or a number
export function added(text, place, value) {
  const { letters, entries } = text;
  const ordered = inTime(entries);
  const before = ordered.findLast((entry) => entry.start <= place);
  const model = before ?? ordered[0];
  const { until, comma } = model;
  const [start, end] = model.place;
  const bare = typeof value === "string" && !isQuoted(text, model);
  const indent = indentOf(letters, start);
  const endsLine = ["\n", undefined].includes(letters[until]);
  const inLine = comma !== null && !endsLine;
  const commas = !bare && (entries.some((entry) => entry.comma !== null) || /^\s*}/.test(letters.slice(until).join("")));
  const entry = (alone) => like(text, model, place, value, bare && !(alone && isPlain(value)));

  if (!before && indent !== null && !inLine) {
    return spliced(text, [start, start, `${entry(true)}${commas ? "," : ""}\n${indent}`]);
  }
  if (!before) return spliced(text, [start, start, `${entry(false)}, `]);
  if (inLine) return spliced(text, [until, until, ` ${entry(false)},`]);
  if (!endsLine || (indent === null && !bare)) return spliced(text, [end, end, `, ${entry(false)}`]);
  const line = `\n${indent ?? ""}${entry(true)}`;
  if (comma !== null) return spliced(text, [until, until, `${line},`]);
  return spliced(text, [end, end, commas ? "," : ""], [until, until, line]);
}

// With its line, where it is alone there.
export function deleted(text, entry) {
  const { letters } = text;
  const { until, comma } = entry;
  const [start, end] = entry.place;
  const indent = indentOf(letters, start);
  const commaBefore = comma === null ? commaOfTheOneBefore(text, start) : null;
  const changes = commaBefore === null ? [] : [[commaBefore, commaBefore + 1, ""]];
  const next = letters[until];
  if (indent !== null && (next === "\n" || next === undefined)) {
    const lineStart = start - indent.length;
    changes.push(next ? [lineStart, until + 1, ""] : [Math.max(0, lineStart - 1), until, ""]);
  } else if (comma === null) {
    changes.push([commaBefore === null ? start : commaBefore + 1, end, ""]);
  } else {
    const blanks = /^[^\S\n]*/.exec(letters.slice(comma + 1).join(""))[0].length;
    changes.push([start, comma + 1 + blanks, ""]);
  }
  return spliced(text, ...changes);
}

export function inTime(entries) {
  return [...entries].sort((a, b) => a.start - b.start);
}

// Where an entry that is held over `length` frames further can start, nearest to where it is wanted; null where the clip is full.
export function nearestFree(text, moving, wanted, length = 0) {
  for (let away = 0; away < text.frames; away++) {
    for (const start of [wanted - away, wanted + away]) if (isFree(text, moving, start, start + length)) return start;
  }
  return null;
}

// The next place to the left (-1) or to the right (1) where it can start; null where there is none.
export function nextFree(text, moving, direction) {
  const length = lengthOf(moving);
  let start = direction > 0 ? Math.floor(moving.start) + 1 : Math.ceil(moving.start) - 1;
  for (; start >= 0 && start < text.frames; start += direction) {
    if (isFree(text, moving, start, start + length)) return start;
  }
  return null;
}

// As far as one end of an entry can go towards where it is wanted.
export function stretched(text, entry, end, wanted) {
  const others = text.entries.filter((other) => other !== entry);
  if (end === "start") {
    const least = Math.max(0, ...others.filter((other) => other.end < entry.start).map((other) => Math.floor(other.end) + 1));
    return Math.min(Math.max(wanted, least), Math.floor(entry.end));
  }
  const most = others.filter((other) => other.start > entry.end).map((other) => Math.ceil(other.start) - 1);
  return Math.max(Math.min(wanted, text.frames - 1, ...most), Math.ceil(entry.start));
}

export function lengthOf(entry) {
  return Math.round(entry.end) - Math.round(entry.start);
}

function commaOfTheOneBefore({ letters, entries }, start) {
  const comma = entries.filter((other) => other.place[1] <= start).at(-1)?.comma ?? null;
  return comma === null || letters.slice(comma + 1, start).join("").trim() ? null : comma;
}

function isFree(text, moving, start, end) {
  if (start < 0 || end > text.frames - 1) return false;
  return text.entries.every((other) => other === moving || end < other.start || other.end < start);
}

function spliced({ letters }, ...changes) {
  const result = [...letters];
  for (const [start, end, by] of changes.reverse().sort((a, b) => b[0] - a[0])) result.splice(start, end - start, by);
  return result.join("");
}

function renamed(text, entry, start, end) {
  const [from, to] = entry.ends;
  const first = start === entry.start ? asWritten(from) : placed(from, start, text.frames);
  if (start === end) return [...entry.namePlace, first];
  const last = end === entry.end ? asWritten(to) : placed(to, end, text.frames);
  return [...entry.namePlace, `${first}${first[0] === "-" || last[0] === "-" ? " - " : "-"}${last}`];
}

// An entry like another one, elsewhere and with another value.
function like(text, model, place, value, needsQuotes) {
  const letters = (start, end) => text.letters.slice(start, end).join("");
  const [end] = model.ends;
  const name = end.percent ? placed(end, place, text.frames) : String(place);
  const prompt = typeof value === "string";
  const written = prompt && (needsQuotes || isQuoted(text, model)) ? escaped(value, text.letters[model.place[0]] === '"') : value;
  return [
    letters(model.place[0], model.namePlace[0]),
    name,
    letters(model.namePlace[1], model.valuePlace[0]),
    needsQuotes ? `"${written}"` : prompt ? written : String(value),
    letters(model.valuePlace[1], model.place[1]),
  ].join("");
}

// Percentages and frames from the end stay what they are.
function placed({ number, percent }, place, frames) {
  if (!percent) return String(number < 0 ? place - frames : place);
  const share = frames > 1 ? (100 * place) / (frames - 1) : 0;
  for (let decimals = 0; ; decimals++) {
    const rounded = Number(share.toFixed(decimals));
    if (decimals === DECIMALS || Math.abs(rounded - share) * (frames - 1) < 0.1) return `${rounded}%`;
  }
}

function asWritten({ number, percent }) {
  return `${number}${percent ? "%" : ""}`;
}

function isQuoted(text, entry) {
  return text.letters[entry.valuePlace[0] - 1] === '"';
}

// Read back as it is without quotes; some that would be are not, which is as good.
function isPlain(prompt) {
  return /^[^"\s][^\n]*$/.test(prompt.trim()) && !/#|\/\/|,\s*"?-?\d/.test(prompt);
}

// Backslashes that start no escape stay alone, as in \(, but not in JSON.
function escaped(prompt, json) {
  const text = prompt.replace(json ? /["\\]/g : /"|\\(?=["\\/bfnrtu]|$)/g, (letter) => `\\${letter}`);
  return json ? text.replaceAll("\n", "\\n") : text;
}

// What stands before an entry in its line where that is white space, else null.
function indentOf(letters, start) {
  const before = letters.slice(0, start).join("").split("\n").at(-1);
  return before.trim() ? null : before;
}
