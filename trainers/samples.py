"""A page of what a training run samples: each clip with its losses and its motion, beside that of the dataset. No host import."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from statistics import fmean
from urllib.parse import quote

from torch import Tensor

from .checkpoint import write_atomically
from .loop import Trainer
from .quality import Motion, mean_motion, motion_of
from .sources import Clip
from .video import left_out

COMPARED = 8  # clips of a dataset whose motion is measured
POINTS = 150  # of a curve
CHART = 300, 130  # pixels, width and height


def motion_of_dataset(sources: Sequence[Clip]) -> Motion | None:
    """Of a few clips, evenly spaced; None where none can be measured. What cannot be decoded is logged and left out."""

    def clips() -> Iterable[Tensor]:
        reasons: list[str] = []
        for source in sources[:: max(1, -(-len(sources) // COMPARED))]:  # of shards there are none
            with left_out(reasons):
                yield source.read().movedim(1, -1)

    return mean_motion(clips())


class SamplePage:
    """<name>.samples.html beside preview, the animated file of the last sample; those of all are in <name>.samples.

    compared: the dataset's motion. Samples of an earlier run that trainer goes on from stay on the page.
    """

    def __init__(self, preview: Path, trainer: Trainer, prompt: str, compared: Motion | None) -> None:
        self.preview, self.trainer, self.prompt, self.compared = preview, trainer, prompt, compared
        self.folder = preview.with_suffix(".samples")
        self.path = preview.with_suffix(".samples.html")
        self._record = self.folder / "samples.json"
        self._motions: dict[int, Motion | None] = {}
        if trainer.step and self._record.is_file():
            kept = json.loads(self._record.read_text(encoding="utf-8"))
            self._motions = {
                int(step): motion and Motion(**motion) for step, motion in kept.items() if int(step) <= trainer.step
            }

    def add(self, images: Tensor) -> None:
        """The clip [frames, h, w, 3] in preview, made after trainer's last step; to TensorBoard, too."""
        step, motion = self.trainer.step, motion_of(images)
        self._motions = {**self._motions, step: motion}
        write_atomically(self._clip(step), lambda name: shutil.copyfile(self.preview, name))
        record = {step: motion and vars(motion) for step, motion in self._motions.items()}
        write_atomically(self._record, lambda name: Path(name).write_text(json.dumps(record), encoding="utf-8"))
        write_atomically(self.path, lambda name: Path(name).write_text(self.html(), encoding="utf-8"))
        both = {"sample": motion, "dataset": self.compared}
        values = {f"{key}/{of}": value for of, found in both.items() if found for key, value in vars(found).items()}
        self.trainer.log_sample(images, values)

    def html(self) -> str:
        """The page; it needs nothing but the clips beside it."""
        name, trained = escape(self.trainer.config.name), self.trainer.losses
        validation = [(step, losses["validation"]) for step, losses in enumerate(trained, 1) if "validation" in losses]
        names = list(dict.fromkeys(key for losses in trained for key in losses if key != "validation"))
        curves = {key: _thinned([(step, losses[key]) for step, losses in enumerate(trained, 1) if key in losses]) for key in names}  # fmt: skip
        charts = [_chart("Loss", curves | ({"held out": validation} if validation else {}), None, "{:.4f}")]
        of_samples = {step: motion for step, motion in self._motions.items() if motion is not None}
        if of_samples:
            for title, key, form in (
                ("Flow, of the width per frame", "flow", "{:.2%}"),
                ("Consistency", "consistency", "{:.3f}"),
            ):
                points = [(step, getattr(motion, key)) for step, motion in sorted(of_samples.items())]
                compared = None if self.compared is None else getattr(self.compared, key)
                charts.append(_chart(title, {"samples": points}, compared, form))
        said = [f"Prompt: <q>{escape(self.prompt)}</q>."]
        if self.compared is not None:
            said.append(
                f"The dataset's clips: flow {self.compared.flow:.2%}, consistency {self.compared.consistency:.3f}, the dashed lines. "
                "Less flow is stiller than they are; less consistency, less of what is seen stays itself."
            )
        if self.trainer.best is not None:
            loss, step = self.trainer.best
            said.append(f"The clips held out have their lowest loss, {loss:.4f}, after step {step}.")
        cards = [self._card(step, names) for step in sorted(self._motions, reverse=True)]
        return PAGE.format(
            name=name, said="".join(f"<p>{text}</p>" for text in said), charts="".join(charts), cards="".join(cards)
        )

    def _clip(self, step: int) -> Path:
        return self.folder / f"step-{step:06}{self.preview.suffix}"

    def _card(self, step: int, names: Sequence[str]) -> str:
        trained, earlier = self.trainer.losses, max((other for other in self._motions if other < step), default=0)
        rows: dict[str, str] = {}
        for name in names:
            since = [losses[name] for losses in trained[earlier:step] if name in losses]
            if since:
                rows[name] = f"{fmean(since):.4f}"
        measured = [losses["validation"] for losses in trained[:step] if "validation" in losses]
        if measured:
            rows["held out"] = f"{measured[-1]:.4f}"
        motion = self._motions[step]
        if motion is not None:
            rows |= {"flow": f"{motion.flow:.2%}", "consistency": f"{motion.consistency:.3f}"}
        address = quote(f"{self.folder.name}/{self._clip(step).name}")
        numbers = "".join(f"<div><dt>{escape(key)}</dt><dd>{value}</dd></div>" for key, value in rows.items())
        return (
            f'<figure><img src="{address}" alt="the clip after step {step}" loading="lazy">'
            f"<figcaption><h2>Step {step}</h2><dl>{numbers}</dl></figcaption></figure>"
        )


def _thinned(points: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    """At most POINTS of them, each the mean of equally many."""
    width = -(-len(points) // POINTS) or 1
    groups = [points[start : start + width] for start in range(0, len(points), width)]
    return [(fmean(step for step, _ in group), fmean(value for _, value in group)) for group in groups]


def _chart(
    title: str, series: Mapping[str, Sequence[tuple[float, float]]], compared: float | None, form: str
) -> str:  # fmt: skip
    """An SVG with a line for each series of (step, value), and a dashed one at compared."""
    values = [value for points in series.values() for _, value in points] + ([] if compared is None else [compared])
    steps = [step for points in series.values() for step, _ in points]
    (low, high), last = (min(values), max(values)), max(steps)
    low, high = (low, high) if high > low else (low - 0.5 * abs(low), high + 0.5 * abs(high) + 1e-9)
    width, height = CHART

    def place(step: float, value: float) -> tuple[float, float]:
        return round(4 + (width - 8) * step / last, 1), round(6 + (height - 12) * (high - value) / (high - low), 1)

    drawn: list[str] = []
    if compared is not None:
        y = place(0, compared)[1]
        drawn.append(f'<line class="compared" x1="0" x2="{width}" y1="{y}" y2="{y}"><title>dataset {form.format(compared)}</title></line>')  # fmt: skip
    for number, (name, points) in enumerate(series.items()):
        line = " ".join(f"{x},{y}" for x, y in (place(*point) for point in points))
        drawn.append(f'<polyline class="s{number}" points="{line}"/>')
        if len(points) <= 60:
            drawn += [_dot(number, *place(step, value), f"{name}, step {step:g}: {form.format(value)}") for step, value in points]  # fmt: skip
    keys = [f'<span class="k{number}">{escape(name)}</span>' for number, name in enumerate(series)]
    keys += [] if compared is None else ['<span class="kc">dataset</span>']
    return (
        f'<section><h2>{title}</h2><svg viewBox="0 0 {width} {height}" role="img" aria-label="{title}">{"".join(drawn)}</svg>'
        f'<div class="axis"><span>{form.format(low)} to {form.format(high)}</span><span>steps 0 to {last:g}</span></div>'
        f'<div class="keys">{"".join(keys)}</div></section>'
    )


def _dot(number: int, x: float, y: float, text: str) -> str:
    return f'<circle class="d{number}" cx="{x}" cy="{y}" r="3"><title>{escape(text)}</title></circle>'


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{name}: samples</title>
<style>
:root {{ color-scheme: light dark; --ground: #f7f7f5; --card: #fff; --ink: #1c1d20; --soft: #62656c; --edge: #dcdcd8;
  --s0: #2f6fc4; --s1: #b4561c; --s2: #2b8358; }}
@media (prefers-color-scheme: dark) {{ :root {{ --ground: #17181b; --card: #212327; --ink: #ececee; --soft: #a2a5ad; --edge: #363940;
  --s0: #79aef2; --s1: #f0a06b; --s2: #74cfa0; }} }}
body {{ margin: 0 auto; max-width: 1200px; padding: 24px; background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }}
h1 {{ margin: 0 0 8px; font-size: 24px; }} h2 {{ margin: 0; font-size: 15px; }}
p {{ margin: 0 0 4px; max-width: 75ch; color: var(--soft); }}
.grid {{ display: grid; gap: 16px; margin-top: 20px; grid-template-columns: repeat(auto-fill, minmax(260px, 1fr)); }}
.charts {{ grid-template-columns: repeat(auto-fit, minmax(260px, 1fr)); }}
section, figure {{ margin: 0; padding: 12px; background: var(--card); border: 1px solid var(--edge); border-radius: 8px; }}
svg {{ display: block; width: 100%; margin: 8px 0 4px; overflow: visible; }}
polyline {{ fill: none; stroke-width: 2; stroke-linejoin: round; }} circle {{ stroke: var(--card); stroke-width: 1.5; }}
.s0 {{ stroke: var(--s0); }} .s1 {{ stroke: var(--s1); }} .s2 {{ stroke: var(--s2); }}
.d0 {{ fill: var(--s0); }} .d1 {{ fill: var(--s1); }} .d2 {{ fill: var(--s2); }}
.compared {{ stroke: var(--soft); stroke-width: 1.5; stroke-dasharray: 5 4; }}
.axis {{ display: flex; justify-content: space-between; color: var(--soft); font-size: 12px; }}
.keys {{ display: flex; gap: 14px; font-size: 12px; }}
.keys span::before {{ content: ""; display: inline-block; width: 14px; margin-right: 5px; vertical-align: middle; border-top: 3px solid; }}
.k0::before {{ border-color: var(--s0) !important; }} .k1::before {{ border-color: var(--s1) !important; }}
.k2::before {{ border-color: var(--s2) !important; }} .kc::before {{ border-top: 2px dashed var(--soft) !important; }}
img {{ display: block; width: 100%; border-radius: 4px; background: var(--edge); }}
figcaption {{ padding-top: 8px; }} dl {{ margin: 4px 0 0; font-variant-numeric: tabular-nums; }}
dl div {{ display: flex; justify-content: space-between; }} dt {{ color: var(--soft); }} dd {{ margin: 0; }}
</style></head>
<body><h1>{name}</h1>{said}
<div class="grid charts">{charts}</div>
<div class="grid">{cards}</div>
</body></html>
"""
