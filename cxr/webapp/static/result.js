// The result for one image: the image with its heat map, and the probabilities with their meaning.

import { make, percent } from "./dom.js";

const CLASS_NAMES = { normal: "normal", viral: "viral pneumonia", bacterial: "bacterial pneumonia", covid: "COVID-19 pneumonia" };
const MEANINGS = {
  normal: "no sign of pneumonia that the model can recognise",
  viral: "pattern of viral pneumonia",
  bacterial: "pattern of bacterial pneumonia",
  covid: "pattern of COVID-19 pneumonia",
};

export const heading = (name) => `Prediction: ${CLASS_NAMES[name] ?? name}`;

// `loadHeat` returns the heat map of a class; `view` keeps the slider's position from image to image.
export function showResult(container, image, { model, view, loadHeat, openCard }) {
  if (image.error) container.replaceChildren(failure(image));
  else if (!image.prediction) container.replaceChildren(make("div", { class: "failure" }, title("Classifying the image …"), make("p", { class: "file" }, image.name)));
  else container.replaceChildren(make("div", { class: "detail-grid" }, viewer(image, { view, loadHeat }), finding(image, model, openCard)));
}

const title = (text) => make("h2", { class: "prediction" }, text);

function failure(image) {
  return make("div", { class: "failure" }, title("This file could not be read"), make("p", { class: "file" }, image.name),
    make("p", { class: "box is-wrong" }, image.error), make("p", { class: "quiet" }, "The other images are not affected."));
}

function viewer(image, { view, loadHeat }) {
  const heat = make("img", { class: "heat", alt: "", hidden: true });
  const note = make("p", { class: "quiet", role: "status" });
  const picture = make("img", { class: "image", src: image.prediction.image, alt: `Image ${image.name}` });
  const draw = () => { heat.style.opacity = String(view.opacity); };
  const show = async (name) => {
    note.textContent = image.heats[name] ? "" : "Computing the heat map …";
    try {
      heat.src = await loadHeat(image, name);
      heat.hidden = false;
      note.textContent = "";
    } catch (error) {
      heat.hidden = true;
      note.textContent = error.message;
    }
  };
  const stack = make("div", { class: "stack" }, picture, heat);
  picture.addEventListener("load", () => { // as large as the layout allows, never taller than the window
    stack.style.width = `min(100%, calc(64vh * ${picture.naturalWidth / picture.naturalHeight}))`;
  });
  draw();
  show(image.prediction.predicted_class);
  return make("div", { class: "viewer" },
    make("div", { class: "picture" }, stack),
    make("div", { class: "controls" }, classChoice(image, show), slider(view, draw),
      make("div", {}, make("div", { class: "scale", "aria-hidden": "true" }),
        make("div", { class: "scale-labels" }, make("span", {}, "not used"), make("span", {}, "used most for this class"))),
      note));
}

function classChoice(image, show) {
  const choices = Object.keys(image.prediction.probabilities).map((name) => {
    const input = make("input", { type: "radio", name: "heat-class", value: name, checked: name === image.prediction.predicted_class });
    input.addEventListener("change", () => show(name));
    return make("label", { class: "choice" }, input, make("span", {}, name));
  });
  return make("fieldset", {}, make("legend", {}, "Heat map for"), ...choices);
}

function slider(view, draw) {
  const value = make("output", { for: "opacity" }, roundPercent(view.opacity));
  const input = make("input", { type: "range", id: "opacity", min: "0", max: "100", step: "5", value: String(Math.round(view.opacity * 100)) });
  input.addEventListener("input", () => {
    view.opacity = Number(input.value) / 100;
    value.textContent = roundPercent(view.opacity);
    draw();
  });
  return make("div", { class: "slide" }, make("label", { for: "opacity" }, "Opacity"), input, value);
}

const outOf100 = (probability) => (probability >= 0.995 ? "nearly all" : `about ${Math.round(probability * 100)}`);
const roundPercent = (value) => `${Math.round(value * 100)}%`;

function finding(image, model, openCard) {
  const { prediction } = image;
  const top = prediction.probabilities[prediction.predicted_class];
  const card = make("button", { type: "button", class: "link-button" }, `version ${prediction.model_version}, see its model card`);
  card.addEventListener("click", openCard);
  return make("div", { class: "finding" },
    make("div", {}, title(heading(prediction.predicted_class)), make("p", { class: "file" }, image.name)),
    prediction.warning ? make("p", { class: "box is-wrong" }, make("b", {}, "This prediction may be meaningless"), prediction.warning) : null,
    referral(prediction, model),
    chart(prediction, model),
    make("p", { class: "quiet" }, `The probabilities are calibrated: of 100 images with ${percent(top)} for a class, ${outOf100(top)} should belong to it, if they are like the images the model was tested on.`),
    make("dl", { class: "facts" }, make("dt", {}, "Model"), make("dd", {}, card), make("dt", {}, "Engine"), make("dd", {}, prediction.engine),
      make("dt", {}, "Time"), make("dd", {}, new Date(image.answeredAt).toLocaleTimeString()),
      make("dt", {}, "Use"), make("dd", {}, prediction.disclaimer)));
}

function referral(prediction, model) {
  const limit = model?.refer_below ? ` The referral threshold is ${percent(model.refer_below)}.` : "";
  if (prediction.refer === null) return make("p", { class: "box" }, make("b", {}, "No referral threshold"), "This model does not indicate when it is too uncertain.");
  if (prediction.refer && prediction.warning) return make("p", { class: "box is-refer" }, make("b", {}, "A reader should see this image"), "It is out of distribution: unlike the images the model was tested on.");
  if (prediction.refer) return make("p", { class: "box is-refer" }, make("b", {}, "A reader should see this image"), `The model is too uncertain.${limit}`);
  return make("p", { class: "box is-fine" }, make("b", {}, "Above the referral threshold"), `The prediction can still be wrong.${limit}`);
}

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
      track, make("dd", { class: "meaning" }, MEANINGS[name] ?? ""));
  });
  return make("dl", { class: "chart", "aria-label": "Probability of each class" }, ...rows);
}
