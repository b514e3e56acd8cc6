// The viewer's buttons and what they show: tools, the heat map and its class, the window, view and side of the image.

import { make } from "./dom.js";
import { Viewer } from "./viewer.js";

const byId = (id) => document.getElementById(id);

// A value with as many digits as a window of this width needs.
const short = (value, width) => String(Number(value.toFixed(Math.max(0, 3 - Math.ceil(Math.log10(Math.max(width, 1e-9)))))));

export class Toolbar {
  constructor({ loadHeat }) {
    this.loadHeat = loadHeat;
    this.image = null;
    this.pixels = null; // of that image; null until they are loaded
    this.isHeatOn = false; // off until it is asked for
    this.chosenClass = null; // null: that of the answer
    this.viewer = new Viewer(byId("canvas"), { onChange: (viewer) => this.describe(viewer) });
    const act = {
      fit: () => this.viewer.fit(),
      actual: () => this.viewer.actualSize(),
      larger: () => this.viewer.zoom(1.25),
      smaller: () => this.viewer.zoom(0.8),
      invert: () => this.viewer.invert(),
      reset: () => this.viewer.reset(),
      window: () => this.setTool(this.viewer.tool === "window" ? "pan" : "window"),
      heat: () => this.setHeat(!this.isHeatOn),
      side: () => this.setSideBySide(!this.viewer.isSideBySide),
      full: () => this.toggleFullScreen(),
    };
    for (const [name, perform] of Object.entries(act)) byId(`tool-${name}`).addEventListener("click", perform);
    const keys = { f: "fit", 1: "actual", i: "invert", r: "reset", w: "window", h: "heat", s: "side", Enter: "full" };
    byId("canvas").addEventListener("keydown", (event) => {
      const name = keys[event.key];
      if (name && !event.ctrlKey && !event.metaKey && !event.altKey) { event.preventDefault(); act[name](); }
    });
    for (const id of ["level", "width"]) byId(`window-${id}`).addEventListener("change", () => this.setTypedWindow());
    byId("window-presets").addEventListener("change", (event) => this.usePreset(event.target.value));
    byId("opacity").addEventListener("input", (event) => { this.viewer.opacity = Number(event.target.value) / 100; this.viewer.draw(); });
  }

  get heatClass() {
    const prediction = this.image?.prediction;
    if (!prediction) return null;
    return this.chosenClass in prediction.probabilities ? this.chosenClass : prediction.predicted_class;
  }

  // Prepares for an image whose pixels are still to come: no other image may stand beside its answer. null: none comes.
  expect(image) {
    if (image === this.image) return;
    Object.assign(this, { image, pixels: null, chosenClass: null });
    byId("orientation").textContent = "";
    byId("canvas").setAttribute("aria-label", image ? `Image ${image.name}, not loaded yet` : "Image");
    this.note(image ? "Loading the image …" : "");
    this.drawClasses();
    this.viewer.clear();
  }

  // Shows the image that was expected, with its pixels.
  show(pixels) {
    const { image } = this;
    this.note("");
    if (pixels !== this.pixels) this.viewer.show(pixels);
    this.pixels = pixels;
    this.drawPresets();
    byId("orientation").textContent = [pixels.view && `View ${pixels.view}`, pixels.laterality && pixels.laterality !== "U" && `Side ${pixels.laterality}`].filter(Boolean).join(" · ");
    byId("canvas").setAttribute("aria-label", `Image ${image.name}. Arrow keys pan, plus and minus zoom, Shift and arrows change the window, F fits, 1 shows actual pixels, I inverts, H shows the heat map, S shows both side by side, R resets, Enter fills the screen`);
    this.drawClasses();
    return this.isHeatOn || this.viewer.isSideBySide ? this.updateHeat() : undefined;
  }

  fail(message) {
    this.viewer.clear();
    this.note(message);
  }

  note(text) { byId("stage-note").textContent = text; }

  setTool(tool) {
    this.viewer.tool = tool;
    byId("tool-window").setAttribute("aria-pressed", String(tool === "window"));
    byId("window-options").hidden = tool !== "window";
  }

  drawPresets() {
    const { unit, presets } = this.pixels;
    const named = presets.map(([name, level, width], number) => [String(number), `${name || `Window ${number + 1}`}: level ${short(level, width)}, width ${short(width, width)}`]);
    const options = [["-1", "Your own"], ...named, ["all", "All levels of the image"]];
    byId("window-presets").replaceChildren(...options.map(([value, text]) => make("option", { value }, text)));
    byId("window-unit").textContent = unit;
  }

  usePreset(chosen) {
    const preset = this.pixels?.presets[Number(chosen)];
    if (chosen === "all") this.viewer.showAllLevels();
    else if (preset) this.viewer.setWindowInValues({ level: preset[1], width: preset[2] });
  }

  setTypedWindow() {
    const [level, width] = ["level", "width"].map((id) => byId(`window-${id}`).valueAsNumber);
    if (Number.isFinite(level) && width > 0) this.viewer.setWindowInValues({ level, width });
    else this.viewer.draw(); // shows the window in use again
  }

  setHeat(isOn) {
    this.isHeatOn = isOn;
    this.viewer.isHeatShown = isOn;
    byId("tool-heat").setAttribute("aria-pressed", String(isOn));
    this.updateHeat();
  }

  setSideBySide(isOn) {
    byId("tool-side").setAttribute("aria-pressed", String(isOn));
    this.viewer.setSideBySide(isOn);
    this.updateHeat();
  }

  async updateHeat() {
    const isWanted = this.isHeatOn || this.viewer.isSideBySide;
    byId("heat-options").hidden = !isWanted;
    if (!isWanted || !this.pixels || !this.image.prediction) return this.viewer.draw();
    const [image, name] = [this.image, this.heatClass];
    const isCurrent = () => image === this.image && name === this.heatClass;
    this.viewer.setHeat(image.heats[name] ?? null); // until it is there, that of no other class
    this.note(image.heats[name] ? "" : "Computing the heat map …");
    try {
      const picture = await this.loadHeat(name);
      if (isCurrent() && picture) { this.viewer.setHeat(picture); this.note(""); }
    } catch (error) {
      if (isCurrent()) this.note(error.message);
    }
    return undefined;
  }

  drawClasses() {
    const choices = Object.keys(this.image?.prediction?.probabilities ?? {}).map((name) => {
      const input = make("input", { type: "radio", name: "heat-class", value: name, checked: name === this.heatClass });
      input.addEventListener("change", () => { this.chosenClass = name; this.updateHeat(); });
      return make("label", { class: "choice" }, input, make("span", {}, name));
    });
    byId("heat-classes").replaceChildren(make("legend", {}, "Heat map for"), ...choices);
  }

  describe(viewer) {
    const { image, scale, isInverted } = viewer;
    if (!image) { byId("readout").textContent = ""; return; }
    const density = window.devicePixelRatio || 1;
    const { level, width } = viewer.windowInValues();
    const shown = { level: short(level, width), width: short(width, width) };
    for (const [id, text] of Object.entries(shown)) byId(`window-${id}`).value = text;
    byId("window-presets").value = String(image.presets.findIndex(([, centre, wide]) => short(centre, wide) === shown.level && short(wide, wide) === shown.width));
    byId("readout").textContent = `${image.width} x ${image.height} px · ${Math.round((scale / density) * 100)}% · window ${shown.width}, level ${shown.level}${image.unit && ` ${image.unit}`}${isInverted ? " · inverted" : ""}`;
    byId("tool-invert").setAttribute("aria-pressed", String(Boolean(isInverted)));
  }

  toggleFullScreen() {
    if (document.fullscreenElement) document.exitFullscreen();
    else byId("stage").requestFullscreen?.().catch(() => this.note("This browser does not allow full screen"));
  }
}
