"use strict";
const form = document.getElementById("search");
const byId = (id) => document.getElementById(id);

function say(text) {
  document.querySelector(".toast")?.remove();
  const toast = document.createElement("p");
  toast.className = "toast";
  toast.setAttribute("role", "alert");
  toast.textContent = text;
  document.body.append(toast);
  setTimeout(() => toast.remove(), 6000);
}

async function send(address, body, type) {
  try {
    const response = await fetch(address, { method: "POST", body, headers: { "content-type": type } });
    const answer = await response.json();
    if (!response.ok) throw new Error(answer.error);
    return answer;
  } catch (error) {
    say(error.message || "the server does not answer");
    return null;
  }
}

async function setMark(card, mark) {
  const field = form?.elements.namedItem("case");
  if (!field) return;
  if (!field.value.trim()) field.value = "my case";
  const body = JSON.stringify({ case: field.value.trim(), id: Number(card.dataset.id), mark });
  const answer = await send("/mark", body, "application/json");
  if (!answer) return;
  // The links were made before the case had its name.
  for (const link of document.querySelectorAll(".more-like")) {
    const address = new URL(link.href);
    address.searchParams.set("case", answer.case);
    link.href = address;
  }
  const address = `/case/${encodeURIComponent(answer.case)}`;
  const known = [...document.querySelectorAll("#case-links a")];
  if (!known.some((link) => link.getAttribute("href") === address)) {
    const link = document.createElement("a");
    link.href = address;
    link.textContent = answer.case;
    byId("case-links").append(link);
  }
  const now = answer.marks[card.dataset.id] || "";
  card.classList.toggle("confirmed", now === "confirmed");
  card.classList.toggle("gone", now === "rejected");
  card.querySelector(".confirm").setAttribute("aria-pressed", String(now === "confirmed"));
  say(`case ${answer.case}: ${now || "mark removed"}`);
  if (form.elements.namedItem("refine").checked) htmx.trigger(form, "submit");
}

document.addEventListener("click", (event) => {
  const card = event.target.closest(".card");
  if (event.target.closest(".confirm")) setMark(card, card.classList.contains("confirmed") ? "" : "confirmed");
  if (event.target.closest(".reject")) setMark(card, card.classList.contains("gone") ? "" : "rejected");
});

document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input:not([type=checkbox]), select, textarea");
  if (event.ctrlKey || event.metaKey || event.altKey || (typing && event.key !== "Escape")) return;
  const frames = [...document.querySelectorAll("#results .frame")];
  const at = frames.indexOf(document.activeElement);
  const card = document.activeElement?.closest?.(".card");
  if (event.key === "/") byId("q")?.focus();
  else if (event.key === "Escape") document.activeElement.blur();
  else if (event.key === "ArrowRight" && frames.length) frames[Math.min(at + 1, frames.length - 1)].focus();
  else if (event.key === "ArrowLeft" && at >= 0) frames[Math.max(at - 1, 0)].focus();
  else if (event.key === "c" && card) card.querySelector(".confirm")?.click();
  else if (event.key === "x" && card) card.querySelector(".reject")?.click();
  else if (event.key === "m" && card) card.querySelector(".more-like")?.click();
  else return;
  event.preventDefault();
});

function fold(folded) {
  byId("controls")?.classList.toggle("folded", folded);
  byId("fold")?.setAttribute("aria-expanded", String(!folded));
}
// On a phone the results come first.
if (window.matchMedia("(max-width: 560px)").matches) fold(true);
byId("fold")?.addEventListener("click", () => fold(!byId("controls").classList.contains("folded")));

byId("beta")?.addEventListener("input", (event) => {
  byId("beta-value").textContent = Number(event.target.value).toFixed(2);
});

byId("query-image")?.addEventListener("change", async (event) => {
  event.stopPropagation();
  const file = event.target.files[0];
  const answer = file && (await send("/query-image", file, "application/octet-stream"));
  event.target.value = "";
  if (!answer) return;
  form.elements.namedItem("upload").value = answer.upload;
  byId("uploaded").hidden = false;
  htmx.trigger(form, "submit");
});

function describe(job) {
  if (!job) return "";
  if (job.error) return `${job.name}: ${job.error}${job.added ? `; ${job.added} images had been added` : ""}`;
  const out = job.left_out.length ? `, ${job.left_out.length} left out (${job.left_out[0].join(": ")})` : "";
  return job.finished ? `${job.name}: ${job.added} images added${out}` : `${job.name}: ${job.stage}${job.total ? ` ${job.done} of ${job.total}` : ""}${out}`;
}

async function follow() {
  const { job, images } = await (await fetch("/job")).json();
  byId("job").textContent = describe(job);
  byId("count").textContent = images.toLocaleString("en");
  byId("progress").hidden = !job || job.finished;
  byId("progress").value = job && job.total ? job.done / job.total : 0;
  if (!job || job.finished) return;
  byId("progress").closest("details").open = true;
  setTimeout(follow, 500);
}
// Also that of a zip that was sent before the page was opened, here or elsewhere.
if (byId("zip")) follow();

byId("zip")?.addEventListener("change", async (event) => {
  const file = event.target.files[0];
  event.target.value = "";
  if (!file) return;
  byId("job").textContent = `${file.name}: sending`;
  if (await send(`/add?name=${encodeURIComponent(file.name)}`, file, "application/zip")) follow();
});

document.addEventListener("htmx:sendError", () => say("the server does not answer"));
document.addEventListener("htmx:responseError", (event) => say(event.detail.xhr.responseText.slice(0, 200)));
