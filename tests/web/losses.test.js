import { chartInWords, keptOf, lossAxis, lossOf, smoothed, statusOf } from "../../web/losses.js";

const lineOf = (value, name = "temporal") => {
  const points = Array.from({ length: 100 }, (_, step) => [step, value(step)]);
  return { name, points, smooth: smoothed(name, points) };
};

describe("statusOf", () => {
  const running = { phase: "training", step: 7, steps: 300, rate: 0.5, left: 586, memory: 4.3e9 };

  test.each([
    [{}, "training · step 7/300 · 2.0 s/it · 9 min 46 s left · 4.3 GB"],
    [{ rate: 3.21, left: 4.2 }, "training · step 7/300 · 3.2 it/s · 5 s left · 4.3 GB"],
    [{ left: 3600 }, "training · step 7/300 · 2.0 s/it · 1 h 0 min left · 4.3 GB"],
    [{ left: 90000 }, "training · step 7/300 · 2.0 s/it · 1 d 1 h left · 4.3 GB"],
    [{ phase: "encoding the videos", step: 0, rate: null, left: null, memory: null }, "encoding the videos"],
  ])("%j", (change, said) => expect(statusOf({ ...running, ...change })).toBe(said));
});

test.each([
  [0, "nothing is learnt yet"],
  [1, "keeps the first step"],
  [120, "keeps all 120 steps"],
])("what is kept of %i steps", (step, said) => expect(keptOf({ step })).toBe(said));

describe("smoothed", () => {
  const line = (value) => lineOf(value).points;

  test("a constant stays, and so do the steps", () => {
    for (const [step, value] of smoothed("temporal", line(() => 0.2))) expect(value).toBeCloseTo(0.2, 12);
    expect(smoothed("temporal", line(Math.sin)).map(([step]) => step)).toEqual(line(Math.sin).map(([step]) => step));
  });

  test("noise goes, a trend remains", () => {
    const noisy = smoothed("temporal", line((step) => step / 100 + (step % 2 ? 0.3 : -0.3)));
    for (const [step, value] of noisy.slice(15, 85)) expect(value).toBeCloseTo(step / 100, 2);
  });

  test("the validation loss is shown as it is", () => {
    const points = line((step) => step % 3);
    expect(smoothed("validation", points)).toBe(points);
  });
});

describe("lossAxis", () => {
  const noisy = (step) => 0.2 + 0.05 * Math.sin(17 * step);

  test("holds all losses, with some room", () => {
    const { log, range } = lossAxis([lineOf(noisy), lineOf((step) => 0.3, "validation")]);
    expect(log).toBe(false);
    expect(range[0]).toBeGreaterThan(0.13);
    expect(range[0]).toBeLessThan(0.15);
    expect(range[1]).toBeGreaterThan(0.3);
    expect(range[1]).toBeLessThan(0.32);
  });

  test("a single outlier stays outside", () => {
    const { range } = lossAxis([lineOf((step) => (step === 50 ? 1 : noisy(step)))]);
    expect(range[1]).toBeLessThan(0.4);
  });

  test("is logarithmic where losses span more than five times, from a round loss on", () => {
    for (const [value, low, high] of [
      [(step) => 1 / (1 + step / 20), 0.1, 0.95],
      [(step) => 0.07 * 10 ** (-step / 99), 0.005, 0.07],
    ]) {
      const { log, range } = lossAxis([lineOf(value)]);
      expect([log, range[0]]).toEqual([true, low]);
      expect(range[1]).toBeCloseTo(high, 2);
    }
    expect(lossAxis([lineOf((step) => 1 - 0.75 * (step / 99))]).log).toBe(false);
    expect(lossAxis([lineOf((step) => step - 10)]).log).toBe(false); // no logarithm of 0
  });

  test("a loss that stays the same has an axis, too", () => {
    const [low, high] = lossAxis([lineOf(() => 0.25)]).range;
    expect([low, high]).toEqual([expect.closeTo(0.15), expect.closeTo(0.35)]);
  });
});

test("losses have their users' names and three digits", () => {
  expect(["temporal", "spatial", "loss"].map((name) => lossOf(name, 0.012345))).toEqual([
    "motion (temporal) 0.0123",
    "looks (spatial) 0.0123",
    "loss 0.0123",
  ]);
});

test("the chart in words", () => {
  const lines = [lineOf(() => 0.5, "loss"), { name: "validation", smooth: [[50, 0.4], [90, 0.3]], points: [[50, 0.4], [90, 0.3]] }];
  expect(chartInWords(lines)).toBe("Losses from step 0 to 99: loss 0.500, at the end 0.500; validation 0.400, at the end 0.300");
});
