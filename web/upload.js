// Footage for Video Dataset from the user's own folders: chosen with a button, or dropped on the node. The host's upload puts it into
// ComfyUI's input folder; several files into a new folder there, so that no earlier ones are trained on as well.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { html } from "./shared.js";

const LABEL = "choose footage to upload";
const FOOTAGE = /\.(mp4|mov|mkv|webm|avi|m4v|gif|jpe?g|png|webp)$/i;
const CAPTION = /\.txt$/i; // of the same name beside a video

async function upload(file, subfolder) {
  const body = new FormData();
  body.append("image", file); // the host's name for any file
  body.append("subfolder", subfolder);
  const response = await api.fetchApi("/upload/image", { method: "POST", body });
  if (response.ok) return (await response.json()).name;
  const why = response.status === 413 ? "larger than ComfyUI's --max-upload-size" : `${response.status} ${response.statusText}`;
  throw new Error(`${file.name}: ${why}. Put it into ComfyUI's input folder yourself, and its name into source.`);
}

async function take(node, button, files) {
  const folder = files.length === 1 ? "" : `footage-${new Date().toISOString().slice(0, 19).replace(/\D/g, "")}`;
  try {
    let name;
    for (const [index, file] of files.entries()) {
      button.label = `uploading ${index + 1} of ${files.length}`;
      node.setDirtyCanvas(true);
      name = await upload(file, folder);
    }
    const source = node.widgets.find((widget) => widget.name === "source"); // now that all of it is there
    source.value = folder || name;
    source.callback?.(source.value);
  } catch (error) {
    app.extensionManager.toast.add({ severity: "error", summary: "Video Dataset", detail: error.message });
  } finally {
    button.label = LABEL;
    node.setDirtyCanvas(true);
  }
}

app.registerExtension({
  name: "DiffDirector.Upload",
  nodeCreated(node) {
    if (node.comfyClass !== "DiffDirectorVideoDataset") return;
    const chooser = html("input", { type: "file", multiple: "", accept: "video/*,image/*,.mkv,.txt" });
    const button = node.addWidget("button", "upload", null, () => chooser.click(), { serialize: false });
    button.serialize = false; // the option keeps it out of the prompt, this out of the workflow
    button.label = LABEL;
    const takeFootage = (list) => {
      const files = [...list].filter(({ name }) => FOOTAGE.test(name) || CAPTION.test(name));
      const any = files.some(({ name }) => FOOTAGE.test(name));
      if (any) take(node, button, files);
      return any;
    };
    chooser.onchange = () => {
      takeFootage(chooser.files);
      chooser.value = ""; // the same files may be chosen again
    };
    node.onDragOver = (event) => [...event.dataTransfer.items].some((item) => item.kind === "file");
    node.onDragDrop = (event) => takeFootage(event.dataTransfer.files);
  },
});
