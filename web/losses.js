// What a training says about itself, in words and as lines. Like shared.js, it does nothing as an extension.

const LABELS = { temporal: "motion (temporal)", spatial: "looks (spatial)" };

// A mean over the neighbours, weighted by a bell curve: a diffusion loss says little from one step to the next. The
// validation loss needs none, it is of the same noise each time.
export function smoothed(name, points) {
  if (name === "validation") return points;
  const reach = points.length / 25;
  return points.map(([step], at) => {
    let sum = 0;
    let weights = 0;
    points.forEach(([, value], i) => {
      const weight = Math.exp(-0.5 * ((i - at) / reach) ** 2);
      sum += weight * value;
      weights += weight;
    });
    return [step, sum / weights];
  });
}

// From which loss to which one the axis goes. Single outliers stay outside, lest they flatten the rest.
export function lossAxis(lines) {
  const values = lines.flatMap(({ points }) => points.map(([, value]) => value)).sort((a, b) => a - b);
  const means = lines.flatMap(({ smooth }) => smooth.map(([, value]) => value));
  const low = Math.min(values[Math.floor(0.02 * values.length)], ...means);
  const high = Math.max(values[Math.ceil(0.98 * values.length) - 1], ...means);
  if (low > 0 && high > 5 * low) return { log: true, range: [roundBelow(low), 1.05 * high] };
  const margin = low === high ? 0.1 : 0.05 * (high - low);
  return { log: false, range: [low - margin, high + margin] };
}

function roundBelow(value) {
  const power = Math.floor(Math.log10(value));
  return [5, 2, 1].map((digit) => Number(`${digit}e${power}`)).find((round) => round <= value);
}

export function lossOf(name, value) {
  return `${LABELS[name] ?? name} ${value.toPrecision(3)}`;
}

// The chart for those who do not see it.
export function chartInWords(lines) {
  const steps = lines.flatMap(({ points }) => points.map(([step]) => Math.round(step)));
  const course = ({ name, smooth }) => `${lossOf(name, smooth[0][1])}, at the end ${smooth.at(-1)[1].toPrecision(3)}`;
  return `Losses from step ${Math.min(...steps)} to ${Math.max(...steps)}: ${lines.map(course).join("; ")}`;
}

export function statusOf({ phase, step, steps, rate, left, memory }) {
  const speed = rate && (rate >= 1 ? `${rate.toFixed(1)} it/s` : `${(1 / rate).toFixed(1)} s/it`);
  const parts = [
    phase,
    step && `step ${step}/${steps}`,
    speed,
    left && `${duration(left)} left`,
    memory && `${(memory / 1e9).toFixed(1)} GB`,
  ];
  return parts.filter(Boolean).join(" · ");
}

// What there is of a training that is cancelled now.
export function keptOf({ step }) {
  if (!step) return "nothing is learnt yet";
  return step === 1 ? "keeps the first step" : `keeps all ${step} steps`;
}

function duration(seconds) {
  const [days, hours, minutes] = [86400, 3600, 60].map((unit) => Math.floor(seconds / unit));
  if (days) return `${days} d ${hours % 24} h`;
  if (hours) return `${hours} h ${minutes % 60} min`;
  return minutes ? `${minutes} min ${Math.floor(seconds % 60)} s` : `${Math.ceil(seconds)} s`;
}
