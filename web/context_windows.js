// The plan of Context Windows, in the node, as its widgets say at the moment. nodes/plan_route.py draws it.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { addDisplay, addStyle, follow, html, leaveMouseToCanvas, takePlace } from "./shared.js";

const NODE = "DiffDirectorContextWindows";
const SETTINGS = ["context_length", "overlap", "stride", "schedule", "fuse", "closed_loop", "plan_frames"];
const PAUSE = 80; // ms without a change before the server is asked
const HEIGHT = 200; // px
const AROUND = 20; // px that the host leaves free around it on the canvas

const STYLE = `
.diffdirector-plan {
  --comfy-widget-min-height: ${HEIGHT + AROUND}px;
  box-sizing: border-box; min-height: ${HEIGHT}px; padding: 8px; gap: 4px;
  display: flex; flex-direction: column; justify-content: center; border-radius: 8px; overflow: hidden;
  background: var(--comfy-input-bg); color: var(--input-text); font: 12px/1.4 Inter, Arial, sans-serif;
}
.diffdirector-plan img { flex: 1 1 0; min-height: 0; width: 100%; object-fit: fill; }
.diffdirector-plan .frames { display: flex; justify-content: space-between; font-size: 10px; opacity: 0.75; }
.diffdirector-plan [role="status"] { text-align: center; text-wrap: balance; }
.diffdirector-plan.wrong [role="status"] { color: color-mix(in srgb, var(--error-text) 65%, var(--input-text)); }
.diffdirector-plan:is(.wrong, .unknown) :is(img, .frames) { display: none; }
`;

class Plan {
  constructor(node) {
    this.node = node;
    this.element = html("div", { class: "diffdirector-plan unknown" });
    this.image = html("img", { title: "A row for each window, a column for each frame, the fuller the more it counts" });
    this.image.onload = () => (this.image.style.maxHeight = `${2.4 * this.image.naturalHeight}px`);
    this.frames = html("div", { class: "frames" });
    this.last = html("span");
    this.frames.append("frame 0", this.last);
    this.status = html("div", { role: "status" });
    this.element.append(this.image, this.frames, this.status);
    leaveMouseToCanvas(this.element);
    for (const widget of node.widgets) {
      if (SETTINGS.includes(widget.name)) follow(widget, "callback", () => this.update());
    }
    for (const method of ["onAdded", "onConfigure", "onConnectionsChange"]) follow(node, method, () => this.update());
    addDisplay(node, "plan", this.element);
    node.setSize([node.size[0], Math.max(node.size[1], node.computeSize()[1])]);
  }

  update() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.ask(), PAUSE);
  }

  // One question at a time; what changed in the meantime is asked for afterwards.
  async ask() {
    if (!this.node.graph) return;
    if (this.asking) return (this.again = true);
    const linked = this.node.inputs.filter((input) => input.link != null && SETTINGS.includes(input.widget?.name));
    if (linked.length) {
      const names = linked.map((input) => input.name).join(", ");
      return this.say("unknown", `The plan is known when it runs: ${names} from another node`);
    }
    this.asking = true;
    try {
      const values = this.node.widgets.filter(({ name }) => SETTINGS.includes(name));
      const settings = new URLSearchParams(values.map(({ name, value }) => [name, value]));
      const answer = await api.fetchApi(`/diffdirector/plan?${settings}`);
      if (answer.ok) this.show(await answer.json(), settings.get("plan_frames"));
      else this.say("wrong", answer.status === 400 ? await answer.text() : answer.statusText);
    } catch (error) {
      this.say("wrong", `The plan could not be drawn: ${error.message}`);
    } finally {
      this.asking = false;
    }
    if (this.again) this.update();
    this.again = false;
  }

  show({ picture, caption }, frames) {
    this.image.src = picture;
    this.image.alt = caption;
    this.last.textContent = frames - 1;
    this.say("known", caption);
  }

  say(kind, text) {
    this.element.className = `diffdirector-plan ${kind}`;
    this.status.textContent = text;
    takePlace(this.node, this.element, "plan");
    this.node.setDirtyCanvas(true, true);
  }
}

app.registerExtension({
  name: "DiffDirector.ContextWindows",
  setup() {
    addStyle(STYLE);
  },
  nodeCreated(node) {
    if (node.comfyClass === NODE) new Plan(node);
  },
});
