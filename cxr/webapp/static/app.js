// The page: sends each image to the service; keeps images and results in this browser only.

import { loadExamples, loadModel, post, predict, signOut, watchService } from "./api.js";
import { toCsv } from "./csv.js";
import { make } from "./dom.js";
import { labelOfKey, sendFeedback } from "./feedback.js";
import { ofDrop, ofInput } from "./files.js";
import { drawRow, isDone, shownImages, summary } from "./list.js";
import { fillCard } from "./model_card.js";
import { forgetPixels, loadPicture, loadPixels, thumbnail } from "./pixels.js";
import { showFinding } from "./result.js";
import * as session from "./session.js";
import { Toolbar } from "./toolbar.js";

const MAX_REQUESTS = 3;
const EXAMPLES = 4;
const byId = (id) => document.getElementById(id);
const images = [];
const shown = { order: "added", filter: "all" };
let model = null;
let selected = null;
let workers = 0;
let added = 0;
let cleared = [];

// Nothing of a list that was cleared meanwhile is kept.
const keep = (image) => { if (images.includes(image)) session.save(image); };
const announce = (text) => { byId("status").textContent = text; };
// Says what failed and belongs to no image.
function complain(text) {
  byId("service").textContent = text;
  announce(text);
}
const toolbar = new Toolbar({ loadHeat });

function addFiles(files) {
  if (!files.length) return;
  cleared = [];
  addImages(files.map(({ file, path }) => ({ id: crypto.randomUUID?.() ?? `${Date.now()}-${added}-${path}`, file, name: file.name, path, prediction: null, thumb: null, error: null, answeredAt: "" })));
  announce(`${files.length} file${files.length > 1 ? "s" : ""} added`);
}

function addImages(more) {
  const wasEmpty = selected === null;
  for (const image of more) {
    Object.assign(image, { number: (added += 1), isStarted: isDone(image), heats: {}, row: makeRow(image) });
    drawRow(image);
    images.push(image);
    keep(image);
  }
  drawList();
  if (wasEmpty && more.length) select(more[0]);
  refresh();
  while (workers < MAX_REQUESTS && next()) work();
}

const next = () => images.find((image) => !image.isStarted);

async function work() {
  workers += 1;
  for (let image = next(); image; image = next()) {
    image.isStarted = true;
    await classify(image);
  }
  workers -= 1;
  refresh();
}

async function classify(image) {
  try {
    await store(image, await predict(image.file, { image: "true" }, model?.limits));
  } catch (error) {
    image.error = error.message;
    image.answeredAt = new Date().toISOString();
  }
  if (!images.includes(image)) return; // cleared meanwhile
  keep(image);
  drawRow(image);
  if (shown.order === "refer" || shown.filter !== "all") drawList();
  if (image === selected) showSelected();
  refresh();
  announce(`${images.filter(isDone).length} of ${images.length} done. ${image.name}: ${summary(image)}`);
}

async function store(image, { image: picture, heat: _heat, ...prediction }) {
  image.thumb = picture ? await thumbnail(picture) : image.thumb;
  image.prediction = prediction;
  image.error = null;
  image.answeredAt = new Date().toISOString();
  if (model && prediction.model_version !== model.model_version) refreshModel();
}

// Returns the picture of the heat for a class of the selected image.
async function loadHeat(name) {
  const image = selected;
  if (!image.heats[name]) {
    const prediction = await predict(image.file, { heat: "true", class: name }, model?.limits);
    const picture = await loadPicture(prediction.heat.image);
    if (prediction.model_version !== image.prediction.model_version) { // the champion moved: replace the whole result
      image.heats = {};
      await store(image, prediction);
      keep(image);
      drawRow(image);
      if (image === selected) showFindingOf(image);
    }
    image.heats[name] = picture;
  }
  return image === selected ? image.heats[name] : null;
}

function retry(failed) {
  for (const image of failed) Object.assign(image, { error: null, isStarted: false });
  failed.forEach(drawRow);
  if (selected) showSelected();
  refresh();
  while (workers < MAX_REQUESTS && next()) work();
}

function makeRow(image) {
  const row = make("button", { type: "button", class: "row" });
  row.addEventListener("click", () => {
    select(image);
    if (matchMedia("(max-width: 760px)").matches) scrollToResult();
  });
  return row;
}

// On a phone the result is below the list, and the notice, which stays in sight, must not cover it.
function scrollToResult() {
  byId("result").style.scrollMarginTop = `${document.querySelector(".notice").offsetHeight}px`;
  byId("result").scrollIntoView({ block: "start" });
}

function drawList() {
  const rows = shownImages(images, shown).map(({ row }) => row);
  const focused = document.activeElement;
  byId("list").replaceChildren(...rows.map((row) => make("li", {}, row)));
  if (rows.includes(focused)) focused.focus({ preventScroll: true });
}

function select(image) {
  selected?.row.removeAttribute("aria-current");
  selected = image;
  image.row.setAttribute("aria-current", "true");
  image.row.scrollIntoView({ block: "nearest" });
  showSelected();
}

async function showSelected() {
  byId("empty").hidden = selected !== null;
  byId("detail").hidden = selected === null;
  const image = selected;
  toolbar.expect(image?.error === null ? image : null);
  if (!image) return;
  showFindingOf(image);
  byId("stage").hidden = image.error !== null;
  if (image.error) return;
  try {
    const pixels = await loadPixels(image, model?.limits);
    if (image === selected) toolbar.show(pixels);
  } catch (error) {
    if (image === selected) toolbar.fail(error.message);
  }
}

// Figures of one version must not stand beside the answer of another one, as after a new champion or in a kept session.
const modelOf = ({ prediction }) => (prediction?.model_version === model?.model_version ? model : null);

const showFindingOf = (image) => showFinding(byId("finding"), image, { model: modelOf(image), openCard, retry, download: (what) => download(image, what), give });

function refresh() {
  const done = images.filter(isDone).length;
  const failed = images.filter(({ error }) => error).length;
  byId("count").textContent = images.length ? `${done} of ${images.length}` : "";
  byId("export").disabled = done === 0;
  byId("clear").disabled = images.length === 0;
  byId("undo").hidden = cleared.length === 0;
  byId("retry").hidden = failed === 0;
  byId("retry").textContent = `Retry ${failed} failed`;
  const bar = byId("progress");
  bar.hidden = done === images.length;
  bar.max = images.length || 1;
  bar.value = done;
}

function save(content, name) {
  const link = make("a", { download: name });
  link.href = URL.createObjectURL(content);
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  announce(`${name} was saved`);
}

const exportCsv = () => save(new Blob(["\ufeff", toCsv(images.filter(isDone))], { type: "text/csv" }), "predictions.csv");

async function download(image, what) {
  const [path, options, suffix] = what === "report" ? ["/report", {}, "sr.dcm"] : ["/overlay", { class: toolbar.heatClass ?? image.prediction.predicted_class }, "overlay.png"];
  try {
    const response = await post(path, image.file, options, model?.limits);
    save(await response.blob(), `${image.name}.${suffix}`);
  } catch (error) {
    announce(error.message);
    toolbar.note(error.message);
  }
}

async function give(image, label) {
  try {
    await sendFeedback(image, label);
    image.feedbackError = "";
  } catch (error) {
    image.feedbackError = error.message;
    showGiven(image);
    return announce(`Not stored: ${error.message}`);
  }
  image.feedback = label;
  keep(image);
  showGiven(image);
  return announce(`${image.name}: stored that it is ${label}`);
}

// Shows what was stored, and leaves the keyboard where it was: the buttons are drawn anew.
function showGiven(image) {
  if (image !== selected) return;
  const hadFocus = byId("finding").contains(document.activeElement);
  showFindingOf(image);
  if (hadFocus) (byId("finding").querySelector(".feedback [aria-pressed=true]") ?? byId("result")).focus({ preventScroll: true });
}

// One key is enough while the list or the result has the focus; never while a note is typed.
function giveByKey(event) {
  if (!selected || event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select, textarea")) return;
  const label = labelOfKey(event.key.toLowerCase(), selected);
  if (!label) return;
  event.preventDefault();
  give(selected, label);
}

function clear() {
  cleared = images.splice(0);
  selected = null;
  forgetPixels();
  session.forget();
  drawList();
  showSelected();
  refresh();
  byId("undo").focus();
  announce("The list is empty. Undo brings it back");
}

function undo() {
  const back = cleared;
  cleared = [];
  addImages(back);
  announce(`${back.length} images are back`);
}

function openCard() {
  fillCard(byId("card-body"), model);
  byId("card").showModal();
}

async function refreshModel() {
  model = await loadModel();
  byId("model-name").textContent = `Version ${model.model_version} · model card`;
  byId("model").disabled = false;
  byId("subtitle").textContent = `${capitalised(model.classes.join(", "))}: class probabilities and a heat map of where the model looked`;
  byId("synthetic").hidden = !model.synthetic;
  byId("contradiction").textContent = model.contradiction && `The registry contradicts itself: ${model.contradiction}.`;
  byId("contradiction").hidden = !model.contradiction;
  byId("sign-out").hidden = !model.sign_in;
  const choices = ["all", "refer", "failed"];
  const chosen = byId("filter");
  for (const option of [...chosen.options]) if (!choices.includes(option.value)) option.remove();
  chosen.append(...model.classes.map((name) => make("option", { value: name }, `Only ${name}`)));
  if (![...choices, ...model.classes].includes(shown.filter)) shown.filter = "all"; // a class of the version before
  chosen.value = shown.filter;
  drawList();
  if (selected?.prediction) showFindingOf(selected);
}

const capitalised = (text) => text.charAt(0).toUpperCase() + text.slice(1);

function showService(answers) {
  const button = byId("model");
  button.classList.toggle("is-ready", answers);
  button.classList.toggle("is-away", !answers);
  byId("service").textContent = answers ? "" : "The service does not answer. Retry the images that failed when it is back.";
  if (answers && images.some(({ error }) => error)) refresh();
}

function moveInList(event) {
  const visible = shownImages(images, shown);
  const step = { ArrowDown: 1, ArrowUp: -1, Home: -visible.length, End: visible.length }[event.key];
  if (!step || !selected) return;
  event.preventDefault();
  const index = Math.min(visible.length - 1, Math.max(0, visible.indexOf(selected) + step));
  select(visible[index]);
  visible[index].row.focus();
}

function listenForDrops() {
  let depth = 0;
  const dragging = (by) => { depth = Math.max(0, depth + by); document.body.classList.toggle("is-dragging", depth > 0); };
  addEventListener("dragenter", (event) => { event.preventDefault(); dragging(1); });
  addEventListener("dragleave", () => dragging(-1));
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", async (event) => {
    event.preventDefault();
    depth = 0;
    dragging(0);
    const { found, unread } = await ofDrop(event.dataTransfer);
    addFiles(found);
    const more = unread.length > 5 ? ` and ${unread.length - 5} more` : "";
    if (unread.length) complain(`Left out, because the browser cannot read it: ${unread.slice(0, 5).join(", ")}${more}.`);
  });
}

async function showExamples() {
  try {
    addFiles((await loadExamples(EXAMPLES)).map((file) => ({ file, path: file.name })));
  } catch (error) {
    complain(`No examples: ${error.message}`);
  }
}

function choose(name) {
  byId(name).addEventListener("change", (event) => { shown[name] = event.target.value; drawList(); });
}

for (const id of ["file", "folder"]) byId(id).addEventListener("change", (event) => { addFiles(ofInput(event.target)); event.target.value = ""; });
byId("choose-folder").addEventListener("click", () => byId("folder").click());
byId("examples").addEventListener("click", showExamples);
byId("list").addEventListener("keydown", moveInList);
for (const id of ["list", "result"]) byId(id).addEventListener("keydown", giveByKey);
byId("export").addEventListener("click", exportCsv);
byId("clear").addEventListener("click", clear);
byId("undo").addEventListener("click", undo);
byId("retry").addEventListener("click", () => retry(images.filter(({ error }) => error)));
byId("model").addEventListener("click", openCard);
byId("sign-out").addEventListener("click", () => signOut().catch((error) => complain(`You are still signed in: ${error.message}`)));
byId("card-close").addEventListener("click", () => byId("card").close());
byId("keep").checked = session.isKept();
byId("keep").addEventListener("change", (event) => session.keep(event.target.checked, images));
choose("order");
choose("filter");
listenForDrops();
watchService(showService);
refreshModel();
session.load().then(addImages);
