// The results of the session as CSV. The columns follow the fields of the service's responses.

// A spreadsheet treats a cell that begins with one of these as a formula, and a file may have any name.
const FORMULA = /^[=+\-@\t\r\n]/;

const cell = (value) => {
  const text = value === null || value === undefined ? "" : String(value);
  const safe = typeof value === "string" && FORMULA.test(text) ? `'${text}` : text;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
};

export function toCsv(images) {
  const rows = images.map((image) => ({
    file: image.name,
    path: image.path,
    ...flatten(image.prediction ?? {}),
    error: image.error ?? "",
    answered_at: image.answeredAt,
  }));
  const columns = [...new Set(rows.flatMap((row) => Object.keys(row)))];
  return [columns, ...rows.map((row) => columns.map((name) => row[name]))].map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}

// Probabilities become a column for each class; pictures are left out.
function flatten({ image: _image, heat: _heat, ...fields }) {
  return Object.fromEntries(Object.entries(fields).flatMap(([name, value]) =>
    (name === "probabilities" ? Object.entries(value).map(([label, probability]) => [`p_${label}`, probability]) : [[name, value]])));
}
