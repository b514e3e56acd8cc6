// The sign-in: posts the token once and gets a cookie that no script can read.

const form = document.getElementById("form");
const message = document.getElementById("message");

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  message.textContent = "";
  const token = document.getElementById("token").value.trim();
  try {
    const response = await fetch("/sign-in", { method: "POST", body: JSON.stringify({ token }), headers: { "Content-Type": "application/json" } });
    if (response.ok) return location.replace("/");
    message.textContent = `Not signed in: ${(await response.json()).error.message}.`;
  } catch {
    message.textContent = "The service does not answer.";
  }
  return document.getElementById("token").select();
});

// A link from another site comes without the cookie, and ends here although the reader is signed in.
fetch("/model").then(({ status }) => { if (status !== 401) location.replace("/"); }, () => undefined);
