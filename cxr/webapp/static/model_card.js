// The model card of the version in use.

import { make, percent } from "./dom.js";

export function fillCard(body, model) {
  body.replaceChildren(
    make("p", { class: "box is-refer" }, model.disclaimer),
    section("This version", facts(model)),
    section("Performance on the test set", ...performance(model)),
    section("Intended use", make("p", {}, "Research on methods: comparing training configurations, protocols and data on images like the training images.")),
    section("Out of scope", list([
      "Diagnosis, triage, or any decision about a patient.",
      "Images that are not frontal, and findings other than its classes: it always predicts one of them.",
      "Hospitals, devices and age groups other than those of its training images: performance there is unknown.",
    ])),
    section("Where the model looked", make("p", {}, "The heat map (Grad-CAM) shows which regions the model used for a class, at a coarse resolution. It does not show where a disease is.")),
    section("Lineage", table(Object.entries(model.lineage).map(([name, value]) => [name.replaceAll("_", " "), make("code", {}, value)]))),
  );
}

const section = (title, ...content) => make("section", {}, make("h3", {}, title), ...content);
const list = (items) => make("ul", {}, ...items.map((item) => make("li", {}, item)));

function facts(model) {
  const referral = model.refer_below === null ? "no threshold" : `if the largest probability is below ${percent(model.refer_below)}`;
  return table([
    ["Model", `${model.model}, version ${model.model_version}`],
    ["Classes", model.classes.join(", ")],
    ["Network", `${model.network}${model.members > 1 ? `, ${model.members} averaged` : ""}`],
    ["Input", `${model.image_size_px} x ${model.image_size_px} px, grey`],
    ["Referred to a reader", referral],
    ["Engine", model.engine],
  ]);
}

function performance(model) {
  const found = model.measured;
  if (!found) return [make("p", {}, "The registry has no verified evaluation of this version.")];
  const patients = found.patients ? ` of ${found.patients} patients` : "";
  const columns = ["precision", "recall", "specificity", "auroc"];
  const head = make("tr", {}, ...["Class", "Images", ...columns.map((name) => (name === "auroc" ? "AUROC" : name[0].toUpperCase() + name.slice(1)))].map((name) => make("th", { scope: "col" }, name)));
  const rows = Object.entries(found.per_class).map(([name, scores]) =>
    make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, String(scores.images)), ...columns.map((column) => make("td", {}, ...score(scores[column])))));
  return [
    make("p", { class: "quiet" }, `${found.images} images${patients}; small print: 95% confidence intervals, resampled by patient.`),
    table(Object.entries(found.overall).map(([name, value]) => [name, make("span", {}, ...score(value))])),
    make("div", { class: "wide", tabindex: "0", role: "group", "aria-label": "Scores of each class" }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows))),
  ];
}

function score(value) {
  if (!value) return ["undefined"];
  const interval = value.low === null ? [] : [make("small", {}, `${value.low.toFixed(3)} to ${value.high.toFixed(3)}`)];
  return [value.value.toFixed(3), ...interval];
}

function table(rows) {
  const body = rows.map(([name, value]) => make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, value)));
  return make("table", {}, make("tbody", {}, ...body));
}
