// A client of the REST service.

const RETRY_MS = 700;
const MAX_TRIES = 40;
const HEALTH_MS = 5000;
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

export class RequestError extends Error {}

// Sends an image; retries while the service is full or loading a model. Any other error is shown to the user.
export async function post(path, file, options, limits) {
  if (limits && file.size > limits.upload_bytes) {
    throw new RequestError(`The file has ${megabytes(file.size)} MB; an image may have ${megabytes(limits.upload_bytes)} MB at most.`);
  }
  const url = `${path}?${new URLSearchParams(options)}`;
  for (let tries = 1; ; tries += 1) {
    const response = await send(url, file);
    if (response.ok) return response;
    if ((response.status === 429 || response.status === 503) && tries < MAX_TRIES) {
      await pause(RETRY_MS * (1 + Math.random()));
      continue;
    }
    throw new RequestError(await message(response));
  }
}

const SIGNED_OUT = "You are signed out. Sign in again in another tab, then retry here.";

export const predict = async (file, options, limits) => (await post("/predict", file, options, limits)).json();

export async function loadModel() {
  for (;;) {
    try {
      const response = await fetch("/model");
      if (response.ok) return await response.json();
      if (response.status === 401) location.replace("/sign-in");
    } catch {
      // the service is restarting
    }
    await pause(RETRY_MS);
  }
}

// Calls `changed` with whether the service answers, now and whenever that changes.
export async function watchService(changed) {
  for (let known = null; ; await pause(HEALTH_MS)) {
    const answers = await fetch("/health").then((response) => response.ok, () => false);
    if (answers !== known) changed(answers);
    known = answers;
  }
}

// A request whose failure is said in words, not in those of the browser.
export async function ask(url, options) {
  try {
    return await fetch(url, options);
  } catch {
    throw new RequestError("The service does not answer. Try again when the dot at the top is green.");
  }
}

export async function loadExamples(count) {
  const numbers = [...Array(count).keys()];
  return Promise.all(numbers.map(async (number) => {
    const response = await ask(`/example?number=${number}`);
    if (!response.ok) throw new RequestError(await message(response));
    return new File([await response.blob()], `synthetic-example-${number + 1}.png`);
  }));
}

const megabytes = (bytes) => (bytes / 1048576).toFixed(0);

async function send(url, file) {
  try {
    // Sends the bytes alone: the file's name and path never leave this page.
    const body = new Blob([file], { type: "application/octet-stream" });
    return await fetch(url, { method: "POST", body, headers: { "Content-Type": "application/octet-stream" } });
  } catch {
    throw new RequestError("The file could not be sent. Was it moved, or has the service stopped? Retry when the dot at the top is green.");
  }
}

export async function signOut() {
  const response = await ask("/sign-in", { method: "DELETE" });
  if (!response.ok) throw new RequestError(await message(response));
  location.replace("/sign-in");
}

export async function message(response) {
  if (response.status === 401) return SIGNED_OUT;
  try {
    const { error } = await response.json();
    return error.message.charAt(0).toUpperCase() + error.message.slice(1) + ".";
  } catch {
    return `The service responded with status ${response.status}.`;
  }
}
