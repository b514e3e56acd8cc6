// The page: sends each image to the service and keeps images and results in its own memory only.

import { loadModel, predict } from "./api.js";
import { toCsv } from "./csv.js";
import { make, percent } from "./dom.js";
import { fillCard } from "./model_card.js";
import { showResult } from "./result.js";

const MAX_REQUESTS = 3;
const byId = (id) => document.getElementById(id);
const images = [];
const view = { opacity: 0.55 };
let model = null;
let selected = null;
let workers = 0;

const announce = (text) => { byId("status").textContent = text; };

function addFiles(files) {
  const added = [...files].map((file) => ({ file, name: file.name, prediction: null, error: null, isStarted: false, heats: {}, answeredAt: "", row: null }));
  if (!added.length) return;
  for (const image of added) {
    image.row = makeRow(image);
    byId("list").append(make("li", {}, image.row));
  }
  images.push(...added);
  if (!selected) select(added[0]);
  announce(`${added.length} file${added.length > 1 ? "s" : ""} added`);
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
    store(image, await predict(image.file, { image: "true" }, model?.limits));
  } catch (error) {
    image.error = error.message;
    image.answeredAt = new Date().toISOString();
  }
  if (!images.includes(image)) return; // cleared meanwhile
  drawRow(image);
  if (image === selected) showSelected();
  refresh();
  announce(`${images.filter(isDone).length} of ${images.length} done. ${image.name}: ${summary(image)}`);
}

function store(image, prediction) {
  image.prediction = { ...prediction, image: prediction.image ?? image.prediction?.image, heat: null };
  image.answeredAt = new Date().toISOString();
  if (model && prediction.model_version !== model.model_version) refreshModel();
}

async function loadHeat(image, name) {
  if (!image.heats[name]) {
    const prediction = await predict(image.file, { heat: "true", class: name }, model?.limits);
    if (prediction.model_version !== image.prediction.model_version) { // the champion moved: replace the whole result
      image.heats = {};
      store(image, prediction);
      drawRow(image);
      if (image === selected) showSelected();
    }
    image.heats[name] = prediction.heat.image;
  }
  return image.heats[name];
}

const isDone = (image) => image.prediction !== null || image.error !== null;

function summary(image) {
  if (image.error) return `could not be read. ${image.error}`;
  if (!image.prediction) return image.isStarted ? "being classified …" : "waiting …";
  const { prediction } = image;
  return `${topClass(prediction)}${prediction.refer ? "; a reader should see it" : ""}`;
}

const topClass = ({ predicted_class: name, probabilities }) => `${name} ${percent(probabilities[name])}`;

function makeRow(image) {
  const row = make("button", { type: "button", class: "row" });
  row.addEventListener("click", () => { select(image); if (matchMedia("(max-width: 760px)").matches) byId("result").scrollIntoView(); });
  image.row = row;
  drawRow(image);
  return row;
}

function drawRow(image) {
  const { prediction, error } = image;
  const thumb = prediction ? make("img", { class: "thumb", src: prediction.image, alt: "" }) : make("span", { class: "thumb", "aria-hidden": "true" }, error ? "!" : "…");
  const outcome = prediction ? topClass(prediction) : error ?? summary(image);
  const flag = prediction?.refer ? make("span", { class: "flag", title: "A reader should see this image" }, prediction.warning ? "Warning" : "Refer") : null;
  image.row.classList.toggle("is-wrong", Boolean(error));
  image.row.setAttribute("aria-label", `${image.name}: ${summary(image)}`);
  image.row.replaceChildren(thumb, make("span", { class: "name", title: image.name }, image.name), make("span", { class: "outcome" }, outcome));
  if (flag) image.row.append(flag);
}

function select(image) {
  selected?.row.removeAttribute("aria-current");
  selected = image;
  image.row.setAttribute("aria-current", "true");
  showSelected();
}

function showSelected() {
  byId("empty").hidden = selected !== null;
  byId("detail").hidden = selected === null;
  if (selected) showResult(byId("detail"), selected, { model, view, loadHeat, openCard });
  else byId("detail").replaceChildren();
}

function refresh() {
  const done = images.filter(isDone).length;
  byId("count").textContent = images.length ? `${done} of ${images.length}` : "";
  byId("export").disabled = done === 0;
  byId("clear").disabled = images.length === 0;
  const bar = byId("progress");
  bar.hidden = done === images.length;
  bar.max = images.length || 1;
  bar.value = done;
}

function exportCsv() {
  const link = make("a", { download: "predictions.csv" });
  link.href = URL.createObjectURL(new Blob(["\ufeff", toCsv(images.filter(isDone))], { type: "text/csv" }));
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  announce("The CSV file was saved");
}

function clear() {
  images.length = 0;
  selected = null;
  byId("list").replaceChildren();
  showSelected();
  refresh();
  byId("file").focus();
  announce("The list is empty");
}

function openCard() {
  fillCard(byId("card-body"), model);
  byId("card").showModal();
}

async function refreshModel() {
  model = await loadModel();
  byId("model-name").textContent = `Version ${model.model_version} · model card`;
  byId("model").disabled = false;
  byId("model").classList.add("is-ready");
  byId("subtitle").textContent = `${capitalised(model.classes.join(", "))}: class probabilities and a heat map of where the model looked`;
  byId("synthetic").hidden = !model.synthetic;
  byId("contradiction").textContent = model.contradiction && `The registry contradicts itself: ${model.contradiction}.`;
  byId("contradiction").hidden = !model.contradiction;
  if (selected?.prediction) showSelected();
}

const capitalised = (text) => text.charAt(0).toUpperCase() + text.slice(1);

function moveInList(event) {
  const step = { ArrowDown: 1, ArrowUp: -1, Home: -images.length, End: images.length }[event.key];
  if (!step || !selected) return;
  event.preventDefault();
  const index = Math.min(images.length - 1, Math.max(0, images.indexOf(selected) + step));
  select(images[index]);
  images[index].row.focus();
}

function listenForDrops() {
  let depth = 0;
  const dragging = (by) => { depth = Math.max(0, depth + by); document.body.classList.toggle("is-dragging", depth > 0); };
  addEventListener("dragenter", (event) => { event.preventDefault(); dragging(1); });
  addEventListener("dragleave", () => dragging(-1));
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    depth = 0;
    dragging(0);
    addFiles(event.dataTransfer.files);
  });
}

byId("file").addEventListener("change", (event) => { addFiles(event.target.files); event.target.value = ""; });
byId("list").addEventListener("keydown", moveInList);
byId("export").addEventListener("click", exportCsv);
byId("clear").addEventListener("click", clear);
byId("model").addEventListener("click", openCard);
byId("card-close").addEventListener("click", () => byId("card").close());
listenForDrops();
refreshModel();
