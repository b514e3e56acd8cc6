// The reading of one image: the image with its heat, and what the numbers mean in words.

import { make, percent } from "./make.js";

const MEANINGS = {
  normal: "no sign of pneumonia that the model knows",
  viral: "the pattern of viral pneumonia",
  bacterial: "the pattern of bacterial pneumonia",
  covid: "the pattern of COVID-19 pneumonia",
};
const VERDICTS = { normal: "Reads as normal", viral: "Reads as viral pneumonia", bacterial: "Reads as bacterial pneumonia", covid: "Reads as COVID-19 pneumonia" };

export const verdict = (name) => VERDICTS[name] ?? `Reads as ${name}`;

// `ask` gets the heat of a class; `view` remembers what the reader set: the slider stays where it is from image to image.
export function showReading(place, image, { model, view, ask, openCard }) {
  if (image.error) place.replaceChildren(trouble(image));
  else if (!image.answer) place.replaceChildren(make("div", { class: "trouble" }, title("Reading the image …"), make("p", { class: "file" }, image.name)));
  else place.replaceChildren(make("div", { class: "detail-grid" }, viewer(image, { model, view, ask }), finding(image, model, openCard)));
}

const title = (text) => make("h2", { class: "verdict" }, text);

function trouble(image) {
  return make("div", { class: "trouble" }, title("This file could not be read"), make("p", { class: "file" }, image.name),
    make("p", { class: "box is-wrong" }, image.error), make("p", { class: "quiet" }, "The other images are not affected."));
}

function viewer(image, { model, view, ask }) {
  const heat = make("img", { class: "heat", alt: "", hidden: true });
  const note = make("p", { class: "quiet", role: "status" });
  const picture = make("img", { class: "image", src: image.answer.image, alt: `Image ${image.name}` });
  const draw = () => { heat.style.opacity = String(view.opacity); };
  const show = async (name) => {
    note.textContent = image.heats[name] ? "" : "Looking where the model looked …";
    try {
      heat.src = await ask(image, name);
      heat.hidden = false;
      note.textContent = "";
    } catch (error) {
      heat.hidden = true;
      note.textContent = error.message;
    }
  };
  const stack = make("div", { class: "stack" }, picture, heat);
  picture.addEventListener("load", () => { // as large as the place allows, never taller than the window
    stack.style.width = `min(100%, calc(64vh * ${picture.naturalWidth / picture.naturalHeight}))`;
  });
  draw();
  show(image.answer.predicted_class);
  return make("div", { class: "viewer" },
    make("div", { class: "picture" }, stack),
    make("div", { class: "controls" }, classChoice(image, model, show), slider(view, draw),
      make("div", {}, make("div", { class: "scale", "aria-hidden": "true" }),
        make("div", { class: "scale-words" }, make("span", {}, "not used"), make("span", {}, "used most for this class"))),
      note));
}

function classChoice(image, model, show) {
  const choices = Object.keys(image.answer.probabilities).map((name) => {
    const input = make("input", { type: "radio", name: "heat-class", value: name, checked: name === image.answer.predicted_class });
    input.addEventListener("change", () => show(name));
    return make("label", { class: "choice" }, input, make("span", {}, name));
  });
  return make("fieldset", {}, make("legend", {}, "Where it looked for"), ...choices);
}

function slider(view, draw) {
  const value = make("output", { for: "opacity" }, percentOf(view.opacity));
  const input = make("input", { type: "range", id: "opacity", min: "0", max: "100", step: "5", value: String(Math.round(view.opacity * 100)) });
  input.addEventListener("input", () => {
    view.opacity = Number(input.value) / 100;
    value.textContent = percentOf(view.opacity);
    draw();
  });
  return make("div", { class: "slide" }, make("label", { for: "opacity" }, "Heat over image"), input, value);
}

const often = (share) => (share >= 0.995 ? "nearly all" : `about ${Math.round(share * 100)}`);
const percentOf = (share) => `${Math.round(share * 100)}%`;

function finding(image, model, openCard) {
  const { answer } = image;
  const top = answer.probabilities[answer.predicted_class];
  const card = make("button", { type: "button", class: "link-button" }, `version ${answer.model_version}, see its card`);
  card.addEventListener("click", openCard);
  return make("div", { class: "finding" },
    make("div", {}, title(verdict(answer.predicted_class)), make("p", { class: "file" }, image.name)),
    answer.warning ? make("p", { class: "box is-wrong" }, make("b", {}, "This answer may mean nothing"), answer.warning) : null,
    referral(answer, model),
    chart(answer, model),
    make("p", { class: "quiet" }, `The numbers are calibrated: of 100 images that get ${percent(top)} for a class, ${often(top)} should be of that class, if they are like the images the model was measured on.`),
    make("dl", { class: "facts" }, make("dt", {}, "Model"), make("dd", {}, card), make("dt", {}, "Computed by"), make("dd", {}, answer.engine),
      make("dt", {}, "Answered"), make("dd", {}, new Date(image.answeredAt).toLocaleTimeString()),
      make("dt", {}, "Use"), make("dd", {}, answer.disclaimer)));
}

function referral(answer, model) {
  const limit = model?.refer_below ? ` Its threshold is ${percent(model.refer_below)}.` : "";
  if (answer.refer === null) return make("p", { class: "box" }, make("b", {}, "No threshold for referral"), "This model cannot say when it is not sure enough.");
  if (answer.refer && answer.warning) return make("p", { class: "box is-refer" }, make("b", {}, "A reader should see this image"), "It is unlike the images that the model was judged on.");
  if (answer.refer) return make("p", { class: "box is-refer" }, make("b", {}, "A reader should see this image"), `The model is not sure enough of it.${limit}`);
  return make("p", { class: "box is-fine" }, make("b", {}, "Sure enough by its own threshold"), `It can still be wrong.${limit}`);
}

function chart(answer, model) {
  const rows = Object.entries(answer.probabilities).map(([name, share]) => {
    const fill = make("div", { class: "fill" });
    fill.style.width = `${share * 100}%`;
    const track = make("div", { class: "track", "aria-hidden": "true" }, fill);
    if (model?.refer_below && name === answer.predicted_class) {
      const limit = make("div", { class: "limit", title: `Threshold for referral: ${percent(model.refer_below)}` });
      limit.style.left = `${model.refer_below * 100}%`;
      track.append(limit);
    }
    return make("div", { class: name === answer.predicted_class ? "is-top" : "" }, make("dt", {}, name), make("dd", { class: "share" }, percent(share)),
      track, make("dd", { class: "means" }, MEANINGS[name] ?? ""));
  });
  return make("dl", { class: "chart", "aria-label": "Probability of each class" }, ...rows);
}
