// The result for one image: the image with its heat map, and the probabilities with their meaning.

import { make, percent } from "./dom.js";
import { feedbackBox } from "./feedback.js";

const CLASS_NAMES = { normal: "normal", viral: "viral pneumonia", bacterial: "bacterial pneumonia", covid: "COVID-19 pneumonia" };
const MEANINGS = {
  normal: "no sign of pneumonia that the model can recognise",
  viral: "pattern of viral pneumonia",
  bacterial: "pattern of bacterial pneumonia",
  covid: "pattern of COVID-19 pneumonia",
};

// Under a warning there is no answer: the class that the numbers would give is not the first thing to read.
export const heading = ({ predicted_class: name, warning }) => (warning ? "No answer" : `Prediction: ${CLASS_NAMES[name] ?? name}`);

// `model` is the one that answered; null: another one is in use by now, whose figures say nothing about this answer.
export function showFinding(container, image, { model, openCard, retry, download, give }) {
  if (image.error) container.replaceChildren(failure(image, retry));
  else if (!image.prediction) container.replaceChildren(make("div", { class: "finding" }, title("Classifying the image …"), make("p", { class: "file" }, image.path)));
  else container.replaceChildren(finding(image, model, openCard, download, give));
}

const title = (text) => make("h2", { class: "prediction" }, text);

function button(text, act) {
  const element = make("button", { type: "button" }, text);
  element.addEventListener("click", act);
  return element;
}

function failure(image, retry) {
  return make("div", { class: "finding" }, title("No result for this file"), make("p", { class: "file" }, image.path),
    make("p", { class: "box is-wrong" }, image.error), button("Try again", () => retry([image])), make("p", { class: "quiet" }, "The other images are not affected."));
}

const outOf100 = (probability) => (probability >= 0.995 ? "nearly all" : `about ${Math.round(probability * 100)}`);
const roundPercent = (value) => `${Math.round(value * 100)}%`;

function finding(image, model, openCard, download, give) {
  const { prediction } = image;
  const card = model ? button(`version ${prediction.model_version}, see its model card`, openCard) : `version ${prediction.model_version}`;
  if (model) card.className = "link-button";
  const numbers = [chart(prediction, model), calibration(prediction, model)];
  return make("div", { class: "finding" },
    make("div", {}, title(heading(prediction)), make("p", { class: "file" }, image.path)),
    prediction.warning ? make("p", { class: "box is-wrong" }, make("b", {}, "This image"), ` ${prediction.warning}.`) : null,
    referral(prediction, model),
    ...(prediction.warning ? [make("details", {}, make("summary", {}, "Show the numbers, which may mean nothing"), ...numbers)] : numbers),
    feedbackBox(image, give),
    make("div", { class: "downloads" }, button("Save overlay (PNG)", () => download("overlay")), prediction.is_dicom ? button("Save report (DICOM SR)", () => download("report")) : null),
    make("dl", { class: "facts" }, make("dt", {}, "Model"), make("dd", {}, card), make("dt", {}, "Engine"), make("dd", {}, prediction.engine),
      make("dt", {}, "Time"), make("dd", {}, new Date(image.answeredAt).toLocaleTimeString()),
      make("dt", {}, "Use"), make("dd", {}, prediction.disclaimer)));
}

function referral(prediction, model) {
  const limit = model?.refer_below ? ` The referral threshold is ${percent(model.refer_below)}.` : "";
  if (prediction.refer === null) return make("p", { class: "box" }, make("b", {}, "No referral threshold"), "This model does not indicate when it is too uncertain.");
  if (prediction.warning) return make("p", { class: "box is-refer" }, make("b", {}, "A reader should see this image"), "The model was not tested on images like it.");
  if (prediction.refer) return make("p", { class: "box is-refer" }, make("b", {}, "A reader should see this image"), `The model is too uncertain.${limit}`);
  return make("p", { class: "box" }, make("b", {}, "Above the referral threshold"), `The prediction can still be wrong.${limit}`);
}

function calibration(prediction, model) {
  const top = prediction.probabilities[prediction.predicted_class];
  const tested = model?.measured ? `, ${model.measured.images} in all` : "";
  return make("p", { class: "quiet" }, `The probabilities are calibrated: of 100 images with ${percent(top)} for a class, ${outOf100(top)} should belong to it, if they are like the images the model was tested on${tested}.`);
}

// How often the model is right about a class, on its test images: recall and predictive value, each with its count.
function tested(name, model) {
  const scores = model?.measured?.per_class[name];
  if (!scores?.recall) return null;
  const found = `Test set: found ${share(scores.recall)} of ${scores.images} ${name} images`;
  const right = scores.predicted && scores.precision ? `; of ${scores.predicted} images it called ${name}, ${share(scores.precision)} were` : "";
  return make("dd", { class: "meaning" }, `${found}${right}.`);
}

const share = ({ value, low, high }) => `${roundPercent(value)}${low === null ? "" : ` (${roundPercent(low)} to ${roundPercent(high)})`}`;

function chart(prediction, model) {
  const rows = Object.entries(prediction.probabilities).map(([name, probability]) => {
    const fill = make("div", { class: "fill" });
    fill.style.width = `${probability * 100}%`;
    const track = make("div", { class: "track", "aria-hidden": "true" }, fill);
    if (model?.refer_below && name === prediction.predicted_class) {
      const limit = make("div", { class: "limit", title: `Referral threshold: ${percent(model.refer_below)}` });
      limit.style.left = `${model.refer_below * 100}%`;
      track.append(limit);
    }
    return make("div", { class: name === prediction.predicted_class ? "is-top" : "" }, make("dt", {}, name), make("dd", { class: "probability" }, percent(probability)),
      track, make("dd", { class: "meaning" }, MEANINGS[name] ?? ""), tested(name, model));
  });
  return make("dl", { class: "chart", "aria-label": "Probability of each class" }, ...rows);
}
