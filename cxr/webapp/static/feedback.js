// What a reader says about an answer: agree or name another class, by a button or one key, with an optional note.

import { ask, message } from "./api.js";
import { make } from "./dom.js";

const AGREE = "a";

export const keyOf = (label) => label.charAt(0);

// The label that a key stands for; undefined: none. Under a warning there is no answer to agree with.
export function labelOfKey(key, { prediction }) {
  if (!prediction) return undefined;
  if (key === AGREE) return prediction.warning ? undefined : prediction.predicted_class;
  return Object.keys(prediction.probabilities).find((label) => keyOf(label) === key);
}

export function feedbackBox(image, give) {
  const { prediction } = image;
  const note = make("input", { type: "text", maxlength: 500, value: image.feedbackNote ?? "" });
  note.addEventListener("input", () => { image.feedbackNote = note.value; });
  const choice = (label, text, key) => {
    const button = make("button", { type: "button", "aria-keyshortcuts": key, "aria-pressed": String(image.feedback === label) }, text);
    button.addEventListener("click", () => give(image, label));
    return button;
  };
  const others = Object.keys(prediction.probabilities).filter((label) => prediction.warning || label !== prediction.predicted_class);
  return make("fieldset", { class: "feedback" }, make("legend", {}, "What do you see?"),
    make("div", { class: "downloads" },
      prediction.warning ? null : choice(prediction.predicted_class, `Agree: ${prediction.predicted_class} (A)`, AGREE),
      ...others.map((label) => choice(label, `It is ${label} (${keyOf(label).toUpperCase()})`, keyOf(label)))),
    make("label", { class: "note" }, "Note, without names (optional) ", note),
    image.feedbackError ? make("p", { class: "box is-wrong" }, `Not stored: ${image.feedbackError}`) : null,
    make("p", { class: "quiet" }, image.feedback ? `Stored: ${image.feedback}. Choose again to change it.` : "Stored on this service's machine with the image's digest, not its name."));
}

export async function sendFeedback({ prediction, feedbackNote }, label) {
  const body = { sha256: prediction.sha256, model_version: prediction.model_version, answer: prediction.predicted_class, label, note: feedbackNote ?? "" };
  const response = await ask("/feedback", { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } });
  if (!response.ok) throw new Error(await message(response));
}
