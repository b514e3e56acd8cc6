// The page: images come in, are sent one by one, and stay in this page's memory alone.

import { fillCard } from "./card.js";
import { make, percent } from "./make.js";
import { showReading } from "./reading.js";
import { loadModel, predict } from "./service.js";
import { toCsv } from "./table.js";

const AT_ONCE = 3;
const byId = (id) => document.getElementById(id);
const images = [];
const view = { opacity: 0.55 };
let model = null;
let chosen = null;
let working = 0;

const say = (text) => { byId("said").textContent = text; };

function addFiles(files) {
  const added = [...files].map((file) => ({ file, name: file.name, answer: null, error: null, heats: {}, answeredAt: "", row: null }));
  if (!added.length) return;
  for (const image of added) {
    image.row = rowOf(image);
    byId("list").append(make("li", {}, image.row));
  }
  images.push(...added);
  if (!chosen) choose(added[0]);
  say(`${added.length} file${added.length > 1 ? "s" : ""} added`);
  refresh();
  while (working < AT_ONCE && next()) work();
}

const next = () => images.find((image) => !image.began);

async function work() {
  working += 1;
  for (let image = next(); image; image = next()) {
    image.began = true;
    await read(image);
  }
  working -= 1;
  refresh();
}

async function read(image) {
  try {
    keep(image, await predict(image.file, { image: "true" }, model?.limits));
  } catch (error) {
    image.error = error.message;
    image.answeredAt = new Date().toISOString();
  }
  if (!images.includes(image)) return; // cleared meanwhile
  drawRow(image);
  if (image === chosen) showChosen();
  refresh();
  say(`${images.filter(isDone).length} of ${images.length} read. ${image.name}: ${summary(image)}`);
}

function keep(image, answer) {
  image.answer = { ...answer, image: answer.image ?? image.answer?.image, heat: undefined };
  image.answeredAt = new Date().toISOString();
  if (model && answer.model_version !== model.model_version) refreshModel();
}

async function heatOf(image, name) {
  if (!image.heats[name]) {
    const answer = await predict(image.file, { heat: "true", class: name }, model?.limits);
    if (answer.model_version !== image.answer.model_version) { // the champion moved: the whole reading is anew
      image.heats = {};
      keep(image, answer);
      drawRow(image);
      if (image === chosen) showChosen();
    }
    image.heats[name] = answer.heat.image;
  }
  return image.heats[name];
}

const isDone = (image) => image.answer !== null || image.error !== null;

function summary(image) {
  if (image.error) return `could not be read. ${image.error}`;
  if (!image.answer) return image.began ? "being read …" : "waiting …";
  const { answer } = image;
  return `${answer.predicted_class}, ${percent(answer.probabilities[answer.predicted_class])}${answer.refer ? "; a reader should see it" : ""}`;
}

function rowOf(image) {
  const row = make("button", { type: "button", class: "row" });
  row.addEventListener("click", () => { choose(image); if (matchMedia("(max-width: 760px)").matches) byId("reading").scrollIntoView(); });
  image.row = row;
  drawRow(image);
  return row;
}

function drawRow(image) {
  const { answer, error } = image;
  const thumb = answer ? make("img", { class: "thumb", src: answer.image, alt: "" }) : make("span", { class: "thumb", "aria-hidden": "true" }, error ? "!" : "…");
  const says = answer ? `${answer.predicted_class} ${percent(answer.probabilities[answer.predicted_class])}` : error ?? summary(image);
  const flag = answer?.refer ? make("span", { class: "flag", title: "A reader should see this image" }, answer.warning ? "Warning" : "Refer") : null;
  image.row.classList.toggle("is-wrong", Boolean(error));
  image.row.setAttribute("aria-label", `${image.name}: ${summary(image)}`);
  image.row.replaceChildren(thumb, make("span", { class: "name", title: image.name }, image.name), make("span", { class: "says" }, says));
  if (flag) image.row.append(flag);
}

function choose(image) {
  chosen?.row.removeAttribute("aria-current");
  chosen = image;
  image.row.setAttribute("aria-current", "true");
  showChosen();
}

function showChosen() {
  byId("empty").hidden = chosen !== null;
  byId("detail").hidden = chosen === null;
  if (chosen) showReading(byId("detail"), chosen, { model, view, ask: heatOf, openCard });
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
  const link = make("a", { download: "chest-images.csv" });
  link.href = URL.createObjectURL(new Blob(["\ufeff", toCsv(images.filter(isDone))], { type: "text/csv" }));
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  say("The table was saved");
}

function clear() {
  images.length = 0;
  chosen = null;
  byId("list").replaceChildren();
  showChosen();
  refresh();
  byId("file").focus();
  say("The session is empty");
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
  byId("synthetic").hidden = !model.synthetic;
  if (chosen?.answer) showChosen();
}

function moveInList(event) {
  const step = { ArrowDown: 1, ArrowUp: -1, Home: -images.length, End: images.length }[event.key];
  if (!step || !chosen) return;
  event.preventDefault();
  const at = Math.min(images.length - 1, Math.max(0, images.indexOf(chosen) + step));
  choose(images[at]);
  images[at].row.focus();
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
