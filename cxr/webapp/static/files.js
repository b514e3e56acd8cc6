// Files that were chosen or dropped, folders with all that is in them. A file keeps its path below the folder.

const isHidden = (name) => name.startsWith(".") || name === "Thumbs.db";

export const ofInput = (input) => [...input.files].filter(({ name }) => !isHidden(name)).map((file) => ({ file, path: file.webkitRelativePath || file.name }));

export async function ofDrop(transfer) {
  // All entries are taken before the first wait: the browser empties the transfer after that.
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...transfer.files].map((file) => ({ file, path: file.name }));
  return (await Promise.all(entries.map(inEntry))).flat();
}

async function inEntry(entry) {
  if (isHidden(entry.name)) return [];
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    return [{ file, path: entry.fullPath.replace(/^\//, "") }];
  }
  const inside = await children(entry.createReader());
  return (await Promise.all(inside.map(inEntry))).flat();
}

async function children(reader) {
  const found = [];
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)); // a hundred at a time
    if (!some.length) return found.sort((one, other) => one.name.localeCompare(other.name));
    found.push(...some);
  }
}
