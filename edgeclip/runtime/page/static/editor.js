// The tables in use in, the form that changes their classes out. `state` gives what the server said last.

import { $, whole } from "/dom.js";

export function makeEditor(current) {
  let edited = false;
  const table = () => current().tables.find((one) => one.name === $("edit-table").value) ?? current().tables[0];

  function showClasses() {
    const all = table().classes.length === table().count;
    $("classes").value = all ? table().classes.join("\n") : "";
    $("classes").placeholder = all ? "" : `${whole(table().count)} classes: too many to show here`;
    edited = false;
  }

  function show() {
    const { enabled, reason } = current().editor;
    $("classes").disabled = $("apply").disabled = $("revert").disabled = !enabled;
    $("editor-off").hidden = enabled;
    $("editor-off").textContent = reason;
    if (!edited) showClasses();
  }

  async function change(what, request) {
    const buttons = [$("apply"), $("upload")], said = $("editor-said");
    said.dataset.kind = "";
    said.textContent = what;
    buttons.forEach((button) => { button.disabled = true; });
    try {
      const answer = await request(), body = await answer.json();
      said.dataset.kind = answer.ok ? "good" : "bad";
      said.textContent = answer.ok ? `In use from the next frame on: ${whole(body.count)} classes.` : body.error;
      if (answer.ok) {
        current().tables = current().tables.map((one) => (one.name === body.name ? body : one));
        showClasses();
      }
    } catch {
      said.dataset.kind = "bad";
      said.textContent = "edgeclip did not answer; the old table stays.";
    }
    $("apply").disabled = !current().editor.enabled;
    $("upload").disabled = false;
  }

  $("editor").onsubmit = (submitted) => {
    submitted.preventDefault();
    const body = JSON.stringify({ table: table().name, classes: $("classes").value.split("\n") });
    change("Encoding the class names", () => fetch("/api/prompts", { method: "POST", headers: { "Content-Type": "application/json" }, body }));
  };
  $("upload").onchange = () => {
    const file = $("upload").files[0];
    if (file) change(`Uploading ${file.name}`, () => fetch(`/api/tables/${encodeURIComponent(table().name)}`, { method: "PUT", body: file })).finally(() => { $("upload").value = ""; });
  };
  $("classes").oninput = () => { edited = true; };
  $("revert").onclick = () => { showClasses(); $("editor-said").textContent = ""; };
  $("edit-table").onchange = showClasses;
  return { show };
}
