// The session, kept in this browser on this machine so that a reload loses nothing; never sent anywhere.

const NAME = "chest-xray-session";
const CHOICE = "keep-session";

export const isKept = () => localStorage.getItem(CHOICE) !== "no";

export async function keep(chosen, images) {
  localStorage.setItem(CHOICE, chosen ? "yes" : "no");
  if (chosen) await Promise.all(images.map(save));
  else await forget();
}

export async function save(image) {
  if (!isKept()) return;
  const { id, number, file, name, path, prediction, thumb, error, answeredAt, feedback, feedbackNote } = image;
  await run("readwrite", (store) => store.put({ id, number, file, name, path, prediction, thumb, error, answeredAt, feedback, feedbackNote })).catch(() => undefined);
}

export async function load() {
  if (!isKept()) return [];
  const kept = await run("readonly", (store) => store.getAll()).catch(() => []); // a private window may have no store
  return kept.sort((one, other) => one.number - other.number);
}

export const forget = () => run("readwrite", (store) => store.clear()).catch(() => undefined);

function run(mode, act) {
  return new Promise((resolve, reject) => {
    const opened = indexedDB.open(NAME, 1);
    opened.onupgradeneeded = () => opened.result.createObjectStore("images", { keyPath: "id" });
    opened.onerror = () => reject(opened.error);
    opened.onsuccess = () => {
      const database = opened.result;
      const transaction = database.transaction("images", mode);
      const request = act(transaction.objectStore("images"));
      transaction.oncomplete = () => { database.close(); resolve(request.result); };
      transaction.onerror = transaction.onabort = () => { database.close(); reject(transaction.error); };
    };
  });
}
