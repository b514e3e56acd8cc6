// The viewer: an image at full size and depth on a canvas, with zoom, pan, window and level, and the heat over it.
// It knows nothing of the page around it. All of it works by mouse, by touch and by keyboard.

const WHEEL_STEP = 1.0015;
const KEY_ZOOM = 1.25;
const KEY_PAN_PX = 60;
const KEY_WINDOW = 0.05;
const MAX_SCALE = 40;
const PIXELATED_FROM = 4; // screen pixels a pixel: from here on single pixels are what people look at

function rangeOf(levels) {
  let [low, high] = [levels[0], levels[0]];
  for (const level of levels) {
    if (level < low) low = level;
    else if (level > high) high = level;
  }
  return [low, high];
}

export class Viewer {
  constructor(canvas, { onChange }) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.onChange = onChange;
    this.image = null; // { levels, width, height, bits, window, zero, step }: see /pixels in /openapi.json
    this.heat = null;
    this.opacity = 1;
    this.isHeatShown = false;
    this.isSideBySide = false;
    this.tool = "pan";
    this.pointers = new Map();
    this.picture = document.createElement("canvas");
    new ResizeObserver(() => this.resize()).observe(canvas);
    this.listen();
  }

  show(image) {
    this.image = image;
    this.heat = null;
    this.reset();
  }

  clear() {
    this.image = null;
    this.heat = null;
    this.draw();
  }

  setHeat(heat) {
    this.heat = heat;
    this.draw();
  }

  // View: image pixels to screen pixels by scale, with the image's middle at (x, y) of the pane's middle.
  reset() {
    if (!this.image) return;
    [this.low, this.high] = this.image.window;
    this.isInverted = false;
    this.window(this.low, this.high);
    this.fit();
  }

  fit() {
    this.isFitted = true;
    [this.x, this.y] = [0, 0];
    this.scale = this.fittedScale();
    this.draw();
  }

  actualSize() {
    this.isFitted = false;
    this.scale = 1;
    this.draw();
  }

  fittedScale() {
    const [width, height] = this.paneSize();
    return this.image ? Math.min(width / this.image.width, height / this.image.height) : 1;
  }

  zoom(factor, [atX, atY] = [0, 0]) {
    if (!this.image) return;
    const scale = Math.min(MAX_SCALE, Math.max(this.fittedScale() / 4, this.scale * factor));
    const change = scale / this.scale;
    this.isFitted = false;
    this.x = atX + (this.x - atX) * change;
    this.y = atY + (this.y - atY) * change;
    this.scale = scale;
    this.draw();
  }

  pan(byX, byY) {
    this.isFitted = false;
    this.x += byX;
    this.y += byY;
    this.draw();
  }

  invert() {
    this.isInverted = !this.isInverted;
    this.window(this.low, this.high);
  }

  // The window in what the image's levels stand for: of DICOM the stored values after rescaling.
  windowInValues() {
    const { zero, step } = this.image;
    return { level: zero + (step * (this.low + this.high)) / 2, width: Math.abs(step) * (this.high - this.low) };
  }

  setWindowInValues({ level, width }) {
    if (!this.image) return;
    const [middle, half] = [(level - this.image.zero) / this.image.step, width / Math.abs(this.image.step) / 2];
    this.window(middle - half, middle + half);
  }

  showAllLevels() {
    if (this.image) this.window(...rangeOf(this.image.levels));
  }

  // Moves the window's width and level by shares of the image's range.
  adjustWindow(byWidth, byLevel) {
    if (!this.image) return;
    const range = this.image.bits === 16 ? 65535 : 255;
    const level = (this.low + this.high) / 2 + byLevel * range;
    const width = Math.max(range / 500, this.high - this.low + byWidth * range);
    this.window(level - width / 2, level + width / 2);
  }

  window(low, high) {
    if (!this.image) return;
    [this.low, this.high] = [low, high];
    const { levels, width, height } = this.image;
    [this.picture.width, this.picture.height] = [width, height];
    const shown = new ImageData(width, height);
    const colours = this.lookupTable();
    const pixels = new Uint32Array(shown.data.buffer);
    for (let at = 0; at < pixels.length; at += 1) pixels[at] = colours[levels[at]];
    this.picture.getContext("2d").putImageData(shown, 0, 0);
    this.draw();
  }

  lookupTable() {
    const colours = new Uint32Array(this.image.bits === 16 ? 65536 : 256);
    const scale = 255 / Math.max(this.high - this.low, 1e-6);
    for (let level = 0; level < colours.length; level += 1) {
      const position = Math.min(255, Math.max(0, Math.round((level - this.low) * scale)));
      const grey = this.isInverted ? 255 - position : position;
      colours[level] = 0xff000000 | (grey << 16) | (grey << 8) | grey;
    }
    return colours;
  }

  resize() {
    const density = window.devicePixelRatio || 1;
    this.canvas.width = Math.round(this.canvas.clientWidth * density);
    this.canvas.height = Math.round(this.canvas.clientHeight * density);
    if (this.isFitted) this.fit();
    else this.draw();
  }

  paneSize() {
    return [this.canvas.width / (this.isSideBySide ? 2 : 1), this.canvas.height];
  }

  setSideBySide(isSideBySide) {
    this.isSideBySide = isSideBySide;
    if (this.isFitted) this.fit();
    else this.draw();
  }

  draw() {
    const { context, canvas } = this;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    if (this.image) {
      const [width] = this.paneSize();
      if (this.isSideBySide) {
        this.drawPane(0, width, false);
        this.drawPane(width, width, true);
      } else this.drawPane(0, width, this.isHeatShown);
    }
    this.onChange(this);
  }

  drawPane(left, width, withHeat) {
    const { context, image, scale } = this;
    context.save();
    context.beginPath();
    context.rect(left, 0, width, this.canvas.height);
    context.clip();
    context.translate(left + width / 2 + this.x, this.canvas.height / 2 + this.y);
    context.scale(scale, scale);
    context.translate(-image.width / 2, -image.height / 2);
    context.imageSmoothingEnabled = scale < PIXELATED_FROM;
    context.imageSmoothingQuality = "high";
    context.drawImage(this.picture, 0, 0);
    if (withHeat && this.heat) {
      context.imageSmoothingEnabled = true;
      context.globalAlpha = this.opacity;
      context.drawImage(this.heat, 0, 0, image.width, image.height);
    }
    context.restore();
  }

  // Position of an event from the middle of its pane, in canvas pixels.
  position({ clientX, clientY }) {
    const box = this.canvas.getBoundingClientRect();
    const density = this.canvas.width / box.width;
    const [width, height] = this.paneSize();
    return [((clientX - box.left) * density) % width - width / 2, (clientY - box.top) * density - height / 2];
  }

  listen() {
    const { canvas } = this;
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoom(WHEEL_STEP ** -event.deltaY, this.position(event));
    }, { passive: false });
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("dblclick", () => (this.isFitted ? this.actualSize() : this.fit()));
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      this.pointers.set(event.pointerId, event);
    });
    for (const type of ["pointerup", "pointercancel"]) canvas.addEventListener(type, (event) => this.pointers.delete(event.pointerId));
    canvas.addEventListener("pointermove", (event) => this.drag(event));
    canvas.addEventListener("keydown", (event) => this.press(event));
  }

  drag(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before || !this.image) return;
    const density = this.canvas.width / this.canvas.clientWidth;
    const [byX, byY] = [(event.clientX - before.clientX) * density, (event.clientY - before.clientY) * density];
    if (this.pointers.size === 2) this.pinch(event, before, byX, byY);
    else if (this.tool === "window" || event.buttons === 2 || event.shiftKey) this.adjustWindow(byX / this.canvas.width, -byY / this.canvas.height);
    else this.pan(byX, byY);
    this.pointers.set(event.pointerId, event);
  }

  // Two fingers: their distance zooms about their middle, their common way pans.
  pinch(event, before, byX, byY) {
    const other = [...this.pointers.values()].find((pointer) => pointer.pointerId !== event.pointerId);
    const distance = (one) => Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY);
    const middle = { clientX: (event.clientX + other.clientX) / 2, clientY: (event.clientY + other.clientY) / 2 };
    this.zoom(distance(event) / Math.max(distance(before), 1), this.position(middle));
    this.pan(byX / 2, byY / 2);
  }

  press(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const step = (name) => ({ ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] })[name];
    const way = step(event.key);
    if (way && event.shiftKey) this.adjustWindow(way[0] * KEY_WINDOW, -way[1] * KEY_WINDOW);
    else if (way) this.pan(-way[0] * KEY_PAN_PX, -way[1] * KEY_PAN_PX);
    else if (event.key === "+" || event.key === "=") this.zoom(KEY_ZOOM);
    else if (event.key === "-") this.zoom(1 / KEY_ZOOM);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }
}
