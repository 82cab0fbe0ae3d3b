// The losses of a training as uPlot draws them: faint as they came, bold their trend. Like shared.js, it does nothing as an extension.
import uPlot from "./lib/uplot/uPlot.esm.js";
import { chartInWords, lossAxis, lossOf, smoothed } from "./losses.js";
import { html } from "./shared.js";

const FONT = "10px Inter, Arial, sans-serif";
const GRID = { stroke: "#8883", width: 1 };
const WHOLE_STEPS = Array.from({ length: 6 }, (_, power) => [1, 2, 5].map((digit) => digit * 10 ** power)).flat();

// the colours keep a contrast of 3:1 and differ for the colour-blind, on the host's dark and light inputs
export const CHART_STYLE = `
@import url("${new URL("./lib/uplot/uPlot.min.css", import.meta.url)}");
.diffdirector-losses { --motion: #1f5fbf; --looks: #b3450b; --held-out: #0f6b4a; }
.dark-theme .diffdirector-losses { --motion: #4d94ec; --looks: #ec7a43; --held-out: #2fb083; }
.diffdirector-losses [data-series] { color: var(--motion); }
.diffdirector-losses [data-series="spatial"] { color: var(--looks); }
.diffdirector-losses [data-series="validation"] { color: var(--held-out); }
.diffdirector-losses [data-series]::before {
  content: ""; display: inline-block; width: 14px; height: 3px; border-radius: 2px; margin-right: 5px;
  vertical-align: middle; background: currentColor;
}
.diffdirector-losses b { color: var(--input-text); font-weight: normal; }
.diffdirector-losses { display: flex; flex-direction: column; flex: 1 1 130px; min-height: 130px; }
.diffdirector-losses .legend { display: flex; flex-wrap: wrap; gap: 0 14px; }
.diffdirector-losses .chart { flex: 1; min-height: 0; position: relative; overflow: hidden; }
.diffdirector-losses .uplot { position: absolute; }
.diffdirector-losses .at { position: absolute; top: 0; padding: 0 6px; pointer-events: none; white-space: nowrap; }
`;

export class LossChart {
  constructor() {
    this.element = html("div", { class: "diffdirector-losses" });
    this.legend = html("div", { class: "legend" });
    this.chart = html("div", { class: "chart", role: "img" });
    this.at = html("div", { class: "at" });
    this.element.append(this.legend, this.chart);
    new ResizeObserver(() => this.draw()).observe(this.chart);
  }

  // series: of each loss its [step, value]s
  show(series) {
    this.lines = Object.entries(series).map(([name, points]) => ({ name, points, smooth: smoothed(name, points) }));
    if (!this.lines.length) return;
    this.legend.replaceChildren(...this.lines.map(({ name, smooth }) => entry(name, smooth.at(-1)[1])));
    this.chart.setAttribute("aria-label", chartInWords(this.lines));
    this.draw();
  }

  draw() {
    const { clientWidth: width, clientHeight: height } = this.chart;
    if (!this.lines?.length || !width || !height) return;
    const { log, range } = lossAxis(this.lines);
    const drawn = this.lines.flatMap(({ points, smooth }) => [points, smooth]);
    const data = uPlot.join(drawn.map((points) => [points.map(([step]) => step), points.map(([, value]) => value)]));
    this.range = range;
    const kind = [log, ...this.lines.map(({ name }) => name)].join();
    if (kind !== this.kind) {
      this.plot?.destroy();
      this.kind = kind;
      this.plot = new uPlot({ width, height, ...this.options(log) }, data, this.chart);
      this.plot.over.append(this.at);
    } else {
      if (this.plot.width !== width || this.plot.height !== height) this.plot.setSize({ width, height });
      this.plot.setData(data);
    }
  }

  // When the theme has changed.
  redraw() {
    this.plot?.redraw(false);
  }

  options(log) {
    const text = () => getComputedStyle(this.chart).color;
    const axis = { stroke: text, font: FONT, grid: GRID, ticks: { show: false }, gap: 4 };
    return {
      legend: { show: false },
      cursor: {
        y: false,
        drag: { x: false, setScale: false },
        // the host scales nodes and moves them under the mouse, of which uPlot's own place of the cursor knows nothing
        move: (plot, left, top) => (left < 0 ? [left, top] : [plot.cursor.event.offsetX, plot.cursor.event.offsetY]),
        points: { show: false },
      },
      padding: [6, 8, 0, 0],
      scales: {
        x: { time: false, range: (plot, first, last) => [first, Math.max(last, first + 1)] },
        y: { distr: log ? 3 : 1, range: () => this.range },
      },
      axes: [
        { ...axis, size: 18, space: 60, incrs: WHOLE_STEPS },
        { ...axis, size: 44, space: 20 },
      ],
      series: [{}, ...this.lines.flatMap(({ name }) => this.pair(name))],
      hooks: { setCursor: [(plot) => this.point(plot)] },
    };
  }

  // A loss as it came, and its trend.
  pair(name) {
    const stroke = () => getComputedStyle(this.legend.querySelector(`[data-series="${name}"]`)).color;
    return [
      { stroke, alpha: 0.3, width: 1, spanGaps: true, points: { show: false } },
      { stroke, width: 2, spanGaps: true, points: { show: false } },
    ];
  }

  // The step under the cursor, on its roomier side, and in the legend the trends there; without a cursor the last ones.
  point({ data, cursor, over }) {
    const at = cursor.idx != null;
    this.at.textContent = at ? `step ${Math.round(data[0][cursor.idx])}` : "";
    const right = over.offsetWidth - cursor.left;
    this.at.style.cssText = right < cursor.left ? `right: ${right}px` : `left: ${cursor.left}px`;
    this.lines.forEach(({ name, smooth }, i) => {
      const trend = 2 + 2 * i;
      const value = (at && data[trend][cursor.idxs[trend]]) || smooth.at(-1)[1];
      this.legend.children[i].firstChild.textContent = lossOf(name, value);
    });
  }
}

function entry(name, value) {
  const element = html("span", { "data-series": name });
  const text = html("b");
  text.textContent = lossOf(name, value);
  element.append(text);
  return element;
}
