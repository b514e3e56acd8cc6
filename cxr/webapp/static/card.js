// The model card: what the version in use says of itself.

import { make, percent } from "./make.js";

export function fillCard(body, model) {
  body.replaceChildren(
    make("p", { class: "box is-refer" }, model.disclaimer),
    section("This version", facts(model)),
    section("Measured on test images", ...measured(model)),
    section("Meant for", make("p", {}, "Research on methods: comparing recipes, protocols and data on images like those it was trained on.")),
    section("Not meant for", list([
      "Diagnosis, triage, or any decision about a patient.",
      "Images that are not frontal, and any finding but its classes: it always answers with one of them.",
      "Hospitals, machines and ages other than those of its training images, of which nothing has been measured.",
    ])),
    section("Where the model looked", make("p", {}, "The heat map (Grad-CAM) shows what the model used for a class, in coarse cells. It does not show where a disease is.")),
    section("Where it comes from", table(Object.entries(model.lineage).map(([name, value]) => [name.replaceAll("_", " "), make("code", {}, value)]))),
  );
}

const section = (title, ...content) => make("section", {}, make("h3", {}, title), ...content);
const list = (items) => make("ul", {}, ...items.map((item) => make("li", {}, item)));

function facts(model) {
  const referral = model.refer_below === null ? "no threshold" : `a largest probability below ${percent(model.refer_below)}`;
  return table([
    ["Model", `${model.model}, version ${model.model_version}`],
    ["Classes", model.classes.join(", ")],
    ["Network", `${model.network}${model.members > 1 ? `, ${model.members} averaged` : ""}`],
    ["Input", `${model.image_size_px} x ${model.image_size_px} px, grey`],
    ["Goes to a reader", referral],
    ["Computed by", model.engine],
  ]);
}

function measured(model) {
  const found = model.measured;
  if (!found) return [make("p", {}, "The registry holds no measurement of this version that it can vouch for.")];
  const patients = found.patients ? ` of ${found.patients} patients` : "";
  const columns = ["precision", "recall", "specificity", "auroc"];
  const head = make("tr", {}, ...["Class", "Images", ...columns.map((name) => (name === "auroc" ? "AUROC" : name[0].toUpperCase() + name.slice(1)))].map((name) => make("th", { scope: "col" }, name)));
  const rows = Object.entries(found.per_class).map(([name, scores]) =>
    make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, String(scores.images)), ...columns.map((column) => make("td", {}, ...score(scores[column])))));
  return [
    make("p", { class: "quiet" }, `${found.images} images${patients}; small print: 95% intervals over patients.`),
    table(Object.entries(found.overall).map(([name, value]) => [name, make("span", {}, ...score(value))])),
    make("div", { class: "wide" }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows))),
  ];
}

function score(value) {
  if (!value) return ["not defined"];
  const interval = value.low === null ? [] : [make("small", {}, `${value.low.toFixed(3)} to ${value.high.toFixed(3)}`)];
  return [value.value.toFixed(3), ...interval];
}

function table(rows) {
  const lines = rows.map(([name, value]) => make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, value)));
  return make("table", {}, make("tbody", {}, ...lines));
}
