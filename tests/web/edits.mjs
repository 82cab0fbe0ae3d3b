// [[edit, what the server says of a text, the text, the entry's number or null, ...values], ...] on stdin -> the texts, on stdout
import { readFileSync } from "node:fs";
import * as edits from "../../web/keyframe_text.js";

const jobs = JSON.parse(readFileSync(0, "utf8"));
const done = jobs.map(([edit, read, written, number, ...values]) => {
  const text = { ...read, letters: [...written] };
  return edits[edit](text, ...(number === null ? [] : [text.entries[number]]), ...values);
});
process.stdout.write(JSON.stringify(done));
