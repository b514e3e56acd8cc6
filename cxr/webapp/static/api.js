// A client of the REST service.

const RETRY_MS = 700;
const MAX_TRIES = 40;
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

export class RequestError extends Error {}

// Retries while the service is full or loading a model; any other error is shown to the user.
export async function predict(file, options, limits) {
  if (limits && file.size > limits.upload_bytes) {
    throw new RequestError(`The file has ${megabytes(file.size)} MB; an image may have ${megabytes(limits.upload_bytes)} MB at most.`);
  }
  const url = `/predict?${new URLSearchParams(options)}`;
  for (let tries = 1; ; tries += 1) {
    const response = await send(url, file);
    if (response.ok) return response.json();
    if ((response.status === 429 || response.status === 503) && tries < MAX_TRIES) {
      await pause(RETRY_MS * (1 + Math.random()));
      continue;
    }
    throw new RequestError(await message(response));
  }
}

export async function loadModel() {
  for (;;) {
    try {
      const response = await fetch("/model");
      if (response.ok) return await response.json();
    } catch {
      // the service is restarting
    }
    await pause(RETRY_MS);
  }
}

const megabytes = (bytes) => (bytes / 1048576).toFixed(0);

async function send(url, file) {
  try {
    // Sends the bytes alone: the file's name and path never leave this page.
    const body = new Blob([file], { type: "application/octet-stream" });
    return await fetch(url, { method: "POST", body, headers: { "Content-Type": "application/octet-stream" } });
  } catch {
    throw new RequestError("The file could not be sent. Is it a folder, was it moved, or has the service stopped?");
  }
}

async function message(response) {
  try {
    const { error } = await response.json();
    return error.message.charAt(0).toUpperCase() + error.message.slice(1) + ".";
  } catch {
    return `The service responded with status ${response.status}.`;
  }
}
