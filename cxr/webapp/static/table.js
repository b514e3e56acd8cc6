// The session as CSV, made in the browser.

const COLUMNS = ["file", "predicted_class", "refer", "warning", "error", "model", "model_version", "engine", "synthetic", "answered_at", "disclaimer"];

// A spreadsheet takes a cell that begins like this for a formula, and a file may be called anything.
const FORMULA = /^[=+\-@\t\r\n]/;

const cell = (value) => {
  const text = value === null || value === undefined ? "" : String(value);
  const safe = typeof value === "string" && FORMULA.test(text) ? `'${text}` : text;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
};

export function toCsv(films) {
  const classes = [...new Set(films.flatMap((film) => Object.keys(film.answer?.probabilities ?? {})))];
  const head = [COLUMNS[0], COLUMNS[1], ...classes.map((name) => `p_${name}`), ...COLUMNS.slice(2)];
  const rows = films.map((film) => {
    const told = { ...film.answer, file: film.name, error: film.error ?? "", answered_at: film.answeredAt };
    const shares = classes.map((name) => film.answer?.probabilities[name]);
    return [told.file, told.predicted_class, ...shares, ...COLUMNS.slice(2).map((name) => told[name])];
  });
  return [head, ...rows].map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}
