// Fetches the pixels of an image from the service, at full size and depth; the last few are kept.

import { post } from "./api.js";

const KEPT = 4; // of some 10 MB each
const kept = new Map();

export async function loadPixels(image, limits) {
  if (!kept.has(image)) {
    kept.set(image, fetchPixels(image, limits).catch((error) => {
      kept.delete(image);
      throw error;
    }));
    if (kept.size > KEPT) kept.delete(kept.keys().next().value);
  }
  return kept.get(image);
}

export const forgetPixels = () => kept.clear();

async function fetchPixels(image, limits) {
  const response = await post("/pixels", image.file, {}, limits);
  const described = JSON.parse(response.headers.get("X-Image"));
  const content = await response.arrayBuffer();
  return { ...described, levels: described.bits === 16 ? new Uint16Array(content) : new Uint8Array(content) };
}

// A picture in a data URL, ready to be drawn.
export async function loadPicture(url) {
  const picture = new Image();
  picture.src = url;
  await picture.decode();
  return picture;
}

const THUMB_PX = 112;

// A small copy of a picture in a data URL, as a data URL: a list of 500 must not hold 500 large ones.
export async function thumbnail(url) {
  const picture = await loadPicture(url);
  const scale = THUMB_PX / Math.max(picture.naturalWidth, picture.naturalHeight);
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [Math.max(1, Math.round(picture.naturalWidth * scale)), Math.max(1, Math.round(picture.naturalHeight * scale))];
  canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/jpeg", 0.8);
}
