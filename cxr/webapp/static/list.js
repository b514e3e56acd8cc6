// The list of images: a row each, sorted and filtered as chosen.

import { make, percent } from "./dom.js";

// The order of "refer first": what a reader should see comes first, then errors, then the rest by confidence.
const urgency = ({ prediction, error }) => {
  if (!prediction) return error ? 1 : 3;
  return prediction.refer ? 0 : 2;
};
const confidence = ({ prediction }) => (prediction ? prediction.probabilities[prediction.predicted_class] : 0);
const ORDERS = {
  added: (one, other) => one.number - other.number,
  refer: (one, other) => urgency(one) - urgency(other) || confidence(one) - confidence(other),
  name: (one, other) => one.path.localeCompare(other.path, undefined, { numeric: true }),
};
const FILTERS = {
  all: () => true,
  refer: ({ prediction }) => Boolean(prediction?.refer),
  failed: ({ error }) => error !== null,
};

export const shownImages = (images, { order, filter }) =>
  images.filter((image) => (FILTERS[filter] ?? (({ prediction }) => prediction?.predicted_class === filter && !prediction.warning))(image)).sort(ORDERS[order]);

export const isDone = (image) => image.prediction !== null || image.error !== null;

export const outcome = ({ predicted_class: name, probabilities, warning }) => (warning ? "no answer" : `${name} ${percent(probabilities[name])}`);

export function summary(image) {
  if (image.error) return `no result. ${image.error}`;
  if (!image.prediction) return image.isStarted ? "being classified …" : "waiting …";
  const { prediction } = image;
  return `${outcome(prediction)}${prediction.refer ? "; a reader should see it" : ""}`;
}

export function drawRow(image) {
  const { prediction, error, row } = image;
  const thumb = image.thumb ? make("img", { class: "thumb", src: image.thumb, alt: "" }) : make("span", { class: "thumb", "aria-hidden": "true" }, error ? "!" : "…");
  const said = prediction ? [outcome(prediction)] : error ? [make("span", { class: "visually-hidden" }, "no result. "), error] : [summary(image)];
  row.classList.toggle("is-wrong", Boolean(error));
  row.replaceChildren(thumb, make("span", { class: "name", title: image.path }, image.name), make("span", { class: "outcome" }, ...said));
  if (prediction?.refer) row.append(make("span", { class: "flag" }, prediction.warning ? "Warning" : "Refer"));
}
