// Runs the book's widgets on a static page. An anywidget stores its JavaScript and state in the notebook; this is the
// small part of a notebook that it talks to (anywidget.dev, "Front-End Module"). Jupyter's own manager would do it as
// well, but has to be loaded from another host with its AMD loader, three megabytes in all.

const VIEW = 'script[type="application/vnd.jupyter.widget-view+json"]';
const STATE = 'script[type="application/vnd.jupyter.widget-state+json"]';

class Model {
  constructor({ state, buffers = [] }) {
    this.state = { ...state };
    this.listeners = new Map();
    for (const { path, data } of buffers) {
      const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
      const holder = path.slice(0, -1).reduce((value, key) => value[key], this.state);
      holder[path.at(-1)] = new DataView(bytes.buffer);
    }
  }
  get(name) {
    return this.state[name];
  }
  set(name, value) {
    const changes = typeof name === "object" ? name : { [name]: value };
    for (const [key, next] of Object.entries(changes)) {
      if (this.state[key] === next) continue;
      this.state[key] = next;
      this.#tell(`change:${key}`, next);
    }
    this.#tell("change");
  }
  on(events, listener) {
    for (const event of events.split(/\s+/)) {
      if (!this.listeners.has(event)) this.listeners.set(event, new Set());
      this.listeners.get(event).add(listener);
    }
  }
  off(events, listener) {
    if (!events) this.listeners.clear();
    for (const event of (events ?? "").split(/\s+/)) {
      if (listener) this.listeners.get(event)?.delete(listener);
      else this.listeners.delete(event);
    }
  }
  save_changes() {} // there is no kernel to tell
  send() {}
  #tell(event, ...values) {
    for (const listener of [...(this.listeners.get(event) ?? [])]) listener(this, ...values);
  }
}

async function moduleOf(code) {
  const url = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
  try {
    const loaded = await import(url);
    const exported = loaded.default ?? loaded;
    return typeof exported === "function" ? await exported() : exported;
  } finally {
    URL.revokeObjectURL(url);
  }
}

async function start() {
  const saved = {};
  for (const script of document.querySelectorAll(STATE)) Object.assign(saved, JSON.parse(script.textContent).state);
  const running = new Map(); // one model for all views of a widget
  for (const script of document.querySelectorAll(VIEW)) {
    const id = JSON.parse(script.textContent).model_id;
    const stored = saved[id];
    if (!stored?.state._esm) continue;
    if (!running.has(id)) {
      const [model, widget] = [new Model(stored), await moduleOf(stored.state._esm)];
      if (stored.state._css) document.head.append(Object.assign(document.createElement("style"), { textContent: stored.state._css }));
      await widget.initialize?.({ model, experimental: {} });
      running.set(id, { model, widget });
    }
    const el = document.createElement("div");
    el.className = "jupyter-widgets anywidget";
    script.after(el);
    const { model, widget } = running.get(id);
    await widget.render?.({ model, el, experimental: {} });
  }
}

start();
