// The REST service, as the page uses it.

const PAUSE_MS = 700;
const MOST_TRIES = 40;
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

export class Trouble extends Error {}

// A service that is full or loading says so and is asked again; every other error is for the reader.
export async function predict(file, wanted, limits) {
  if (limits && file.size > limits.upload_bytes) {
    throw new Trouble(`The file has ${megabytes(file.size)} MB; an image may have ${megabytes(limits.upload_bytes)} MB at most.`);
  }
  const address = `/predict?${new URLSearchParams(wanted)}`;
  for (let tries = 1; ; tries += 1) {
    const response = await send(address, file);
    if (response.ok) return response.json();
    if ((response.status === 429 || response.status === 503) && tries < MOST_TRIES) {
      await pause(PAUSE_MS * (1 + Math.random()));
      continue;
    }
    throw new Trouble(await message(response));
  }
}

export async function loadModel() {
  for (;;) {
    try {
      const response = await fetch("/model");
      if (response.ok) return await response.json();
    } catch {
      // the service is being started again
    }
    await pause(PAUSE_MS);
  }
}

const megabytes = (bytes) => (bytes / 1048576).toFixed(0);

async function send(address, file) {
  try {
    // Its bytes alone, under no name: neither what it is called nor where it lies leaves this page.
    const body = new Blob([file], { type: "application/octet-stream" });
    return await fetch(address, { method: "POST", body, headers: { "Content-Type": "application/octet-stream" } });
  } catch {
    throw new Trouble("It could not be sent. Is it a folder, was it moved since, or has the service ended?");
  }
}

async function message(response) {
  try {
    const { error } = await response.json();
    return error.message.charAt(0).toUpperCase() + error.message.slice(1) + ".";
  } catch {
    return `The service answered with ${response.status}.`;
  }
}
