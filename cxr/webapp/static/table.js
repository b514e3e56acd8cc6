// The session as CSV, made in the browser.

const COLUMNS = ["file", "predicted_class", "refer", "warning", "error", "model", "model_version", "engine", "synthetic", "answered_at", "disclaimer"];

// A spreadsheet takes a cell that begins like this for a formula, and a file may be called anything.
const FORMULA = /^[=+\-@\t\r\n]/;

const cell = (value) => {
  const text = value === null || value === undefined ? "" : String(value);
  const safe = typeof value === "string" && FORMULA.test(text) ? `'${text}` : text;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
};

export function toCsv(images) {
  const classes = [...new Set(images.flatMap((image) => Object.keys(image.answer?.probabilities ?? {})))];
  const head = [COLUMNS[0], COLUMNS[1], ...classes.map((name) => `p_${name}`), ...COLUMNS.slice(2)];
  const rows = images.map((image) => {
    const told = { ...image.answer, file: image.name, error: image.error ?? "", answered_at: image.answeredAt };
    const shares = classes.map((name) => image.answer?.probabilities[name]);
    return [told.file, told.predicted_class, ...shares, ...COLUMNS.slice(2).map((name) => told[name])];
  });
  return [head, ...rows].map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}
