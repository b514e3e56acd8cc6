// Files that were chosen or dropped, folders with all that is in them. A file keeps its path below the folder.

const isHidden = (name) => name.startsWith(".") || name === "Thumbs.db";

export const ofInput = (input) => [...input.files].filter(({ name }) => !isHidden(name)).map((file) => ({ file, path: file.webkitRelativePath || file.name }));

// What was dropped: the files that were `found`, and the paths of what the browser may not read, `unread`.
export async function ofDrop(transfer) {
  // All entries are taken before the first wait: the browser empties the transfer after that.
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  const unread = [];
  if (!entries.length) return { found: [...transfer.files].map((file) => ({ file, path: file.name })), unread };
  const found = (await Promise.all(entries.map((entry) => inEntry(entry, unread)))).flat();
  return { found, unread };
}

async function inEntry(entry, unread) {
  if (isHidden(entry.name)) return [];
  const path = entry.fullPath.replace(/^\//, "");
  try {
    if (entry.isFile) return [{ file: await new Promise((resolve, reject) => entry.file(resolve, reject)), path }];
    const inside = await children(entry.createReader());
    return (await Promise.all(inside.map((one) => inEntry(one, unread)))).flat();
  } catch { // removed meanwhile, or without the right to it: the others must not be lost
    unread.push(path);
    return [];
  }
}

async function children(reader) {
  const found = [];
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)); // a hundred at a time
    if (!some.length) return found.sort((one, other) => one.name.localeCompare(other.name));
    found.push(...some);
  }
}
