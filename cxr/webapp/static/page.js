// The page: films come in, are sent one by one, and stay in this page's memory alone.

import { fillCard } from "./card.js";
import { make, percent } from "./make.js";
import { showReading } from "./reading.js";
import { loadModel, predict } from "./service.js";
import { toCsv } from "./table.js";

const AT_ONCE = 3;
const byId = (id) => document.getElementById(id);
const films = [];
const view = { opacity: 0.55 };
let model = null;
let chosen = null;
let working = 0;

const say = (text) => { byId("said").textContent = text; };

function addFiles(files) {
  const added = [...files].map((file) => ({ file, name: file.name, answer: null, error: null, heats: {}, answeredAt: "", row: null }));
  if (!added.length) return;
  for (const film of added) {
    film.row = rowOf(film);
    byId("list").append(make("li", {}, film.row));
  }
  films.push(...added);
  if (!chosen) choose(added[0]);
  say(`${added.length} file${added.length > 1 ? "s" : ""} added`);
  refresh();
  while (working < AT_ONCE && next()) work();
}

const next = () => films.find((film) => !film.began);

async function work() {
  working += 1;
  for (let film = next(); film; film = next()) {
    film.began = true;
    await read(film);
  }
  working -= 1;
  refresh();
}

async function read(film) {
  try {
    keep(film, await predict(film.file, { film: "true" }, model?.limits));
  } catch (error) {
    film.error = error.message;
    film.answeredAt = new Date().toISOString();
  }
  if (!films.includes(film)) return; // cleared meanwhile
  drawRow(film);
  if (film === chosen) showChosen();
  refresh();
  say(`${films.filter(isDone).length} of ${films.length} read. ${film.name}: ${summary(film)}`);
}

function keep(film, answer) {
  film.answer = { ...answer, film: answer.film ?? film.answer?.film, heat: undefined };
  film.answeredAt = new Date().toISOString();
  if (model && answer.model_version !== model.model_version) refreshModel();
}

async function heatOf(film, name) {
  if (!film.heats[name]) {
    const answer = await predict(film.file, { heat: "true", class: name }, model?.limits);
    if (answer.model_version !== film.answer.model_version) { // the champion moved: the whole reading is anew
      film.heats = {};
      keep(film, answer);
      drawRow(film);
      if (film === chosen) showChosen();
    }
    film.heats[name] = answer.heat.image;
  }
  return film.heats[name];
}

const isDone = (film) => film.answer !== null || film.error !== null;

function summary(film) {
  if (film.error) return `could not be read. ${film.error}`;
  if (!film.answer) return film.began ? "being read …" : "waiting …";
  const { answer } = film;
  return `${answer.predicted_class}, ${percent(answer.probabilities[answer.predicted_class])}${answer.refer ? "; a reader should see it" : ""}`;
}

function rowOf(film) {
  const row = make("button", { type: "button", class: "row" });
  row.addEventListener("click", () => { choose(film); if (matchMedia("(max-width: 760px)").matches) byId("reading").scrollIntoView(); });
  film.row = row;
  drawRow(film);
  return row;
}

function drawRow(film) {
  const { answer, error } = film;
  const thumb = answer ? make("img", { class: "thumb", src: answer.film, alt: "" }) : make("span", { class: "thumb", "aria-hidden": "true" }, error ? "!" : "…");
  const says = answer ? `${answer.predicted_class} ${percent(answer.probabilities[answer.predicted_class])}` : error ?? summary(film);
  const flag = answer?.refer ? make("span", { class: "flag", title: "A reader should see this film" }, answer.warning ? "Warning" : "Refer") : null;
  film.row.classList.toggle("is-wrong", Boolean(error));
  film.row.setAttribute("aria-label", `${film.name}: ${summary(film)}`);
  film.row.replaceChildren(thumb, make("span", { class: "name", title: film.name }, film.name), make("span", { class: "says" }, says));
  if (flag) film.row.append(flag);
}

function choose(film) {
  chosen?.row.removeAttribute("aria-current");
  chosen = film;
  film.row.setAttribute("aria-current", "true");
  showChosen();
}

function showChosen() {
  byId("empty").hidden = chosen !== null;
  byId("detail").hidden = chosen === null;
  if (chosen) showReading(byId("detail"), chosen, { model, view, ask: heatOf, openCard });
  else byId("detail").replaceChildren();
}

function refresh() {
  const done = films.filter(isDone).length;
  byId("count").textContent = films.length ? `${done} of ${films.length}` : "";
  byId("export").disabled = done === 0;
  byId("clear").disabled = films.length === 0;
  const bar = byId("progress");
  bar.hidden = done === films.length;
  bar.max = films.length || 1;
  bar.value = done;
}

function exportCsv() {
  const link = make("a", { download: "chest-films.csv" });
  link.href = URL.createObjectURL(new Blob(["\ufeff", toCsv(films.filter(isDone))], { type: "text/csv" }));
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  say("The table was saved");
}

function clear() {
  films.length = 0;
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
  const step = { ArrowDown: 1, ArrowUp: -1, Home: -films.length, End: films.length }[event.key];
  if (!step || !chosen) return;
  event.preventDefault();
  const at = Math.min(films.length - 1, Math.max(0, films.indexOf(chosen) + step));
  choose(films[at]);
  films[at].row.focus();
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
