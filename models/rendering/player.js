"use strict";

// Turns every <figure class="player"> of the page into a player of the scenes in its data element.

const SPEEDS = [0.25, 0.5, 1, 2];
const PLAY = '<svg viewBox="0 0 14 14" aria-hidden="true"><path d="M2 1l11 6-11 6z"/></svg>';
const PAUSE = '<svg viewBox="0 0 14 14" aria-hidden="true"><path d="M2 1h3.6v12H2zM8.4 1H12v12H8.4z"/></svg>';

class Player {
  constructor(figure) {
    this.figure = figure;
    this.scenes = JSON.parse(document.getElementById(figure.dataset.scenes).textContent);
    this.playing = false;
    this.visible = false;
    this.speed = 1;
    this.follow = true;
    this.ghost = true;
    this.pointers = new Map();
    this.build();
    this.readColours();
    this.load(0);
  }

  build() {
    const make = (tag, name, parent) => {
      const element = document.createElement(tag);
      if (name) element.className = name;
      parent.append(element);
      return element;
    };
    this.panes = make("div", "panes", this.figure);
    this.buildCodes(make);
    const bar = make("div", "controls", this.figure);
    if (this.scenes.length > 1) {
      const choice = make("select", "clip-choice", bar);
      choice.setAttribute("aria-label", "Clip");
      this.scenes.forEach((scene) => (make("option", "", choice).textContent = scene.name));
      choice.addEventListener("change", () => this.load(choice.selectedIndex));
    }
    this.button = make("button", "play", bar);
    this.button.type = "button";
    this.button.addEventListener("click", () => this.play(!this.playing));
    this.slider = make("input", "", bar);
    this.slider.type = "range";
    this.slider.min = 0;
    this.slider.step = 1;
    this.slider.setAttribute("aria-label", "Frame");
    this.slider.addEventListener("input", () => {
      this.time = Number(this.slider.value) / this.scene.fps;
      this.draw();
    });
    this.clock = make("span", "time", bar);
    const speed = make("select", "", bar);
    speed.setAttribute("aria-label", "Speed");
    SPEEDS.forEach((value) => (make("option", "", speed).textContent = value + "×"));
    speed.selectedIndex = SPEEDS.indexOf(1);
    speed.addEventListener("change", () => (this.speed = SPEEDS[speed.selectedIndex]));
    const toggle = (text, key) => {
      const label = make("label", "", bar);
      const box = make("input", "", label);
      box.type = "checkbox";
      box.checked = true;
      box.addEventListener("change", () => {
        this[key] = box.checked;
        if (key === "follow") this.resetView();
        this.draw();
      });
      const words = make("span", "", label);
      words.textContent = text;
      return label;
    };
    toggle("Follow", "follow");
    this.ghostToggle = toggle("", "ghost");
  }

  // The box below the bodies in which the pose codes of the frame stand in words.
  buildCodes(make) {
    const wording = document.getElementById("pose-code-wording");
    this.wording = wording && JSON.parse(wording.textContent);
    this.allCodes = false;
    this.codeBox = make("div", "codes", this.figure);
    const head = make("div", "codes-head", this.codeBox);
    this.codeLabel = make("span", "", head);
    const label = make("label", "", head);
    const box = make("input", "", label);
    box.type = "checkbox";
    box.addEventListener("change", () => {
      this.allCodes = box.checked;
      this.moment = -1;
      this.draw();
    });
    label.append("all 70");
    this.codeList = make("ul", "", this.codeBox);
  }

  loadCodes() {
    const codes = this.wording && this.scene.codes;
    this.codeBox.hidden = !codes;
    this.moment = -1;
    if (!codes) return;
    this.bins = Uint8Array.from(atob(codes.data), (c) => c.charCodeAt(0));
    this.codeLabel.textContent = `Pose codes, ${codes.label}`;
  }

  drawCodes(frame) {
    const codes = this.wording && this.scene.codes;
    if (!codes) return;
    const moment = Math.min(codes.moments - 1, Math.floor(frame / codes.frames));
    if (moment === this.moment) return;
    this.moment = moment;
    const { starts, order, phrases, telling } = this.wording;
    const active = order.map((category) => starts[category] + this.bins[moment * order.length + category]);
    const shown = active.filter((code) => this.allCodes || telling[code]);
    const items = shown.map((code) => {
      const item = document.createElement("li");
      item.textContent = phrases[code];
      if (telling[code]) item.className = "telling";
      return item;
    });
    if (!items.length) {
      items.push(document.createElement("li"));
      items[0].textContent = "close to standing at ease";
    }
    this.codeList.replaceChildren(...items);
  }

  load(index) {
    const scene = (this.scene = this.scenes[index]);
    const stride = scene.parents.length * 3;
    this.shape = { parents: scene.parents, sides: scene.sides, head: scene.head, face: scene.face, stride, floor: 0 };
    this.tracks = scene.tracks.map((track) => {
      const body = decode(track, scene.parents.length);
      return {
        label: track.label,
        frames: track.frames,
        body,
        path: smoothRoot(body, stride, track.frames, scene.fps),
      };
    });
    const caption = this.figure.querySelector("figcaption");
    caption.querySelector(".clip-name").textContent = scene.name;
    caption.querySelector(".clip-note").textContent = scene.note;
    caption.querySelector(".clip-caption").textContent = scene.caption;
    this.slider.max = scene.frames - 1;
    this.ghostToggle.hidden = this.tracks.length < 2;
    this.ghostToggle.lastChild.textContent = `${this.tracks[0].label} behind`;
    this.loadCodes();
    this.panes.replaceChildren();
    this.canvases = this.tracks.map((track) => {
      const pane = document.createElement("div");
      pane.className = "pane";
      const canvas = document.createElement("canvas");
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `${track.label}: moving skeleton of ${scene.name}`);
      const label = document.createElement("span");
      label.className = "pane-label";
      label.textContent = this.tracks.length > 1 ? track.label : "";
      pane.append(canvas, label);
      this.panes.append(pane);
      this.listen(canvas);
      return canvas;
    });
    this.time = 0;
    this.resetView();
    this.draw();
  }

  resetView() {
    const { body, frames } = this.tracks[0];
    const [left, right] = this.scene.hips;
    const across = [0, 1, 2].map((a) => body[3 * left + a] - body[3 * right + a]);
    const heading = Math.atan2(-across[2], across[0]);
    const [floor] = range(body, 1);
    let tallest = 0;
    for (let t = 0; t < frames; t++) {
      const [low, high] = range(body.subarray(t * this.shape.stride, (t + 1) * this.shape.stride), 1);
      tallest = Math.max(tallest, high - low);
    }
    this.shape.floor = floor;
    this.height = Math.max(tallest, 0.6);
    this.box = [0, 2].map((axis) => range(body, axis));
    const extent = Math.max(this.box[0][1] - this.box[0][0], this.box[1][1] - this.box[1][0]);
    const fit = this.follow ? this.height : Math.max(this.height, extent * 0.9);
    this.camera = new Camera(heading + 0.65, 0.22, 2.15 * fit + 0.2);
  }

  target(track, frame) {
    if (!this.follow) {
      const [[x0, x1], [z0, z1]] = this.box;
      return [(x0 + x1) / 2, this.shape.floor + 0.5 * this.height, (z0 + z1) / 2];
    }
    const at = 3 * Math.min(frame, track.frames - 1);
    // The pelvis of a standing body is slightly above its middle.
    return [track.path[at], track.path[at + 1] - 0.05 * this.height, track.path[at + 2]];
  }

  listen(canvas) {
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      this.pointers.set(event.pointerId, [event.clientX, event.clientY]);
    });
    canvas.addEventListener("pointermove", (event) => {
      const before = this.pointers.get(event.pointerId);
      if (!before) return;
      const now = [event.clientX, event.clientY];
      if (this.pointers.size === 1) {
        this.turn(now[0] - before[0], now[1] - before[1]);
      } else {
        const other = [...this.pointers].find(([id]) => id !== event.pointerId)[1];
        const gap = (p) => Math.hypot(p[0] - other[0], p[1] - other[1]) || 1;
        this.zoom(gap(before) / gap(now));
      }
      this.pointers.set(event.pointerId, now);
    });
    const release = (event) => this.pointers.delete(event.pointerId);
    canvas.addEventListener("pointerup", release);
    canvas.addEventListener("pointercancel", release);
    canvas.addEventListener("dblclick", () => {
      this.resetView();
      this.draw();
    });
    canvas.addEventListener(
      "wheel",
      (event) => {
        // Without Ctrl the wheel belongs to the page, which is longer than one player.
        if (!event.ctrlKey && !event.metaKey && !this.figure.classList.contains("tall")) return;
        event.preventDefault();
        this.zoom(Math.exp(event.deltaY * 0.001));
      },
      { passive: false },
    );
  }

  turn(dx, dy) {
    this.camera.yaw -= dx * 0.01;
    this.camera.pitch = Math.min(1.5, Math.max(-0.1, this.camera.pitch + dy * 0.01));
    this.draw();
  }

  zoom(factor) {
    this.camera.distance = Math.min(60, Math.max(1, this.camera.distance * factor));
    this.draw();
  }

  play(on) {
    this.playing = on;
    this.button.innerHTML = on ? PAUSE : PLAY;
    this.button.setAttribute("aria-label", on ? "Pause" : "Play");
    this.last = undefined;
    if (on && this.visible) this.schedule();
  }

  show(visible) {
    this.visible = visible;
    this.last = undefined;
    if (visible && this.playing) this.schedule();
  }

  schedule() {
    if (this.pending) return;
    this.pending = requestAnimationFrame((now) => {
      this.pending = 0;
      if (!this.playing || !this.visible) return;
      if (this.last !== undefined) this.time += ((now - this.last) / 1000) * this.speed;
      this.last = now;
      this.time %= this.scene.frames / this.scene.fps;
      this.draw();
      this.schedule();
    });
  }

  readColours() {
    const style = getComputedStyle(document.documentElement);
    this.colours = Object.fromEntries(COLOURS.map((name) => [name, style.getPropertyValue("--" + name).trim()]));
  }

  draw() {
    const frame = Math.min(this.scene.frames - 1, Math.floor(this.time * this.scene.fps + 1e-6));
    this.slider.value = frame;
    const total = (this.scene.frames / this.scene.fps).toFixed(1);
    this.clock.textContent = `${(frame / this.scene.fps).toFixed(1)} / ${total} s`;
    this.tracks.forEach((track, index) => this.drawPane(this.canvases[index], index, frame));
    this.drawCodes(frame);
  }

  drawPane(canvas, index, frame) {
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (!width) return;
    const ratio = window.devicePixelRatio || 1;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    const ctx = canvas.getContext("2d");
    ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
    ctx.clearRect(0, 0, width, height);
    const track = this.tracks[index];
    this.camera.aim(this.target(track, frame), width, height);
    const painter = new Painter(ctx, this.camera, this.colours, this.shape);
    painter.floor();
    painter.path(track, frame);
    painter.shadow(track, frame);
    if (index > 0 && this.ghost) painter.body(this.tracks[0], frame, true);
    painter.body(track, frame, false);
  }
}

const players = [...document.querySelectorAll("figure.player")].map((figure) => new Player(figure));
const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
const watcher = new IntersectionObserver((entries) =>
  entries.forEach((entry) => players.find((p) => p.figure === entry.target).show(entry.isIntersecting)),
);
const resizer = new ResizeObserver((entries) =>
  entries.forEach((entry) => players.find((p) => p.figure === entry.target).draw()),
);
players.forEach((player) => {
  player.play(!still);
  watcher.observe(player.figure);
  resizer.observe(player.figure);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () =>
  players.forEach((player) => {
    player.readColours();
    player.draw();
  }),
);
