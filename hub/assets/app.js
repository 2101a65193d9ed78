// The hub's plain pages. What machines and people call themselves is text here: textContent, never markup.
"use strict";

const find = (id) => document.getElementById(id);
const show = (id, wanted = true) => { const element = find(id); if (element) element.hidden = !wanted; };

async function call(method, path, body) {
  const response = await fetch(path, {
    method,
    headers: { "Content-Type": "application/json", Accept: "application/json" },
    body: method === "GET" ? undefined : JSON.stringify(body ?? {}),
  });
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({ detail: `the hub answered ${response.status}` }));
  const error = new Error(problem.fix ? `${problem.detail}. What to do: ${problem.fix}.` : problem.detail);
  error.status = response.status;
  throw error;
}

const read = async (path) => (await call("GET", path)).json();

function tell(text, bad = false) {
  const message = find("message");
  message.textContent = text;
  message.classList.toggle("bad", bad);
  message.hidden = !text;
}

// Runs `work` with the fields of a form; its button waits meanwhile.
function onSubmit(id, work) {
  const form = find(id);
  if (!form) return;
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const button = form.querySelector("button");
    button.disabled = true;
    tell("");
    try {
      await work(Object.fromEntries(new FormData(form)), form);
    } catch (error) {
      tell(error.message, true);
    } finally {
      button.disabled = false;
    }
  });
}

function cell(row, text, className) {
  const td = row.insertCell();
  if (!className) { td.textContent = text; return td; }
  const span = document.createElement("span");
  span.className = className;
  span.textContent = text;
  td.append(span);
  return td;
}

async function drawMachines() {
  const rows = find("machine-rows");
  if (!rows) return;
  const { items } = await read("/api/nodes?limit=200");
  rows.replaceChildren();
  for (const node of items) {
    const row = rows.insertRow();
    cell(row, node.name || node.id);
    const state = cell(row, node.presence.state, `state ${node.presence.state}`);
    if (node.standing === "pending") state.append(approval(node));
    else if (node.presence.state === "offline" && node.presence.last_disconnect) state.append(` (${node.presence.last_disconnect.reason})`);
    else if (node.presence.state === "refused" && node.refusal) state.append(` (${node.refusal.reason})`);
    else if (node.presence.path_reason) {
      state.append(` (${node.presence.path}${node.presence.rtt_us ? `, ${(node.presence.rtt_us / 1000).toFixed(1)} ms` : ""})`);
      state.title = node.presence.path_reason;
    }
    cell(row, [node.capabilities.os_version || node.capabilities.os, node.capabilities.architecture].filter(Boolean).join(" · "));
  }
  show("no-machines", items.length === 0);
  show("machines");
}

function approval(node) {
  const part = document.createDocumentFragment();
  const code = document.createElement("code");
  code.textContent = node.fingerprint;
  const button = document.createElement("button");
  button.className = "quiet";
  button.textContent = "The peer shows the same: approve";
  button.addEventListener("click", async () => {
    try {
      await call("POST", `/api/nodes/${encodeURIComponent(node.id)}/approve`);
      await drawMachines();
    } catch (error) {
      tell(error.message, true);
    }
  });
  part.append(" fingerprint ", code, document.createElement("br"), button);
  return part;
}

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

// The invite whose machine is awaited, and what is known of it.
let awaited = null;

async function drawProgress() {
  if (!awaited) return;
  const invite = await read(`/api/nodes/invites/${encodeURIComponent(awaited.id)}`);
  const steps = [];
  if (invite.last_refusal && invite.state !== "used") steps.push(`a machine was refused: ${invite.last_refusal.reason}`);
  if (invite.state === "open") steps.push("waiting for the machine…");
  else if (invite.state === "used") {
    const node = await read(`/api/nodes/${encodeURIComponent(invite.node_id)}`);
    steps.push(`✓ the invite was redeemed; the machine's fingerprint is ${node.fingerprint}`);
    if (node.standing === "pending") steps.push("waiting for your approval, in the list below");
    else if (node.presence.state === "online") {
      const rtt = node.presence.rtt_us ? `, ${(node.presence.rtt_us / 1000).toFixed(1)} ms away` : "";
      steps.push(`✓ ${node.name} is online${rtt}`);
    } else steps.push(`${node.name} is ${node.presence.state}`);
  } else steps.push(`the invite is ${invite.state}; make another one`);
  const list = find("progress");
  const texts = [...list.children].map((item) => item.textContent);
  if (texts.join("\n") === steps.join("\n")) return;
  list.replaceChildren(...steps.map((text) => Object.assign(document.createElement("li"), { textContent: text })));
}

function follow() {
  let drawing = false;
  const draw = async () => {
    if (drawing) return;
    drawing = true;
    // Several rows come with one change; they are drawn once.
    await new Promise((done) => setTimeout(done, 150));
    drawing = false;
    await Promise.all([drawMachines(), drawProgress()]).catch((error) => { if (error.status === 401) location.reload(); });
  };
  const events = new EventSource("/api/events");
  for (const kind of ["node", "invite"]) events.addEventListener(kind, draw);
  events.addEventListener("open", draw);
}

async function enter() {
  const me = await read("/api/me");
  for (const id of ["setup", "login"]) show(id, false);
  show("account");
  show("invite");
  if (find("account-name")) find("account-name").textContent = me.name;
  follow();
}

async function begin() {
  for (const element of document.querySelectorAll(".hub-url")) element.textContent = location.origin;
  try {
    await enter();
  } catch (error) {
    if (error.status !== 401) { tell(error.message, true); return; }
    const { needed } = await read("/api/setup");
    show(needed ? "setup" : "login");
    const token = new URLSearchParams(location.hash.slice(1)).get("setup");
    if (token) {
      // The token leaves the address bar and the history as soon as it is here.
      history.replaceState(null, "", location.pathname);
      const field = find("setup-token");
      if (field && needed) { field.value = token; find("setup-name").focus(); }
    }
  }
}

onSubmit("setup-form", async (fields) => { await call("POST", "/api/setup", fields); await enter(); });
onSubmit("login-form", async (fields, form) => { await call("POST", "/api/login", fields); form.reset(); await enter(); });
onSubmit("logout-form", async () => { await call("POST", "/api/logout"); location.reload(); });

onSubmit("invite-form", async (fields) => {
  const response = await call("POST", "/api/nodes/invite", {
    name: fields.name.trim(),
    expires_in_s: Number(fields.expires_in_s),
    approval: fields.approval === "on",
  });
  const invite = await response.json();
  awaited = invite;
  find("one-liner").textContent = invite.one_liner;
  find("join-expiry").textContent = new Date(invite.expires_at_ms).toLocaleString();
  const host = new URL(/https?:[^ ]+/.exec(invite.one_liner)[0]).hostname;
  find("own-host").textContent = host;
  show("loopback", ["localhost", "127.0.0.1", "[::1]"].includes(host));
  find("bundle").disabled = !invite.programs.some((program) => program.available);
  show("join");
  find("join").scrollIntoView({ behavior: "smooth" });
  await drawProgress();
});

find("copy")?.addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(awaited.one_liner);
    find("copy").textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(find("one-liner"));
    find("copy").textContent = "Selected: press Ctrl-C";
  }
});

find("yaml")?.addEventListener("click", () => save(new Blob([awaited.yaml], { type: "application/yaml" }), "peer.yaml"));

find("bundle")?.addEventListener("click", async () => {
  try {
    const response = await call("POST", "/api/nodes/bundle", { invite: awaited.invite });
    save(await response.blob(), "cortex-peer.tar.gz");
  } catch (error) {
    tell(error.message, true);
  }
});

begin();
