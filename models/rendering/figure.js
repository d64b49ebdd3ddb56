"use strict";

// Draws one stick figure on its floor. Units are metres, Y is up; a camera looks at a target from
// (yaw, pitch, distance).

const LENS = 1.6; // focal length over the shorter side of a pane
const NEAR = 0.2; // metres; nothing closer to the camera is drawn
const GRID_RADIUS = 7; // metres of floor around the figure
const LIMB = 0.055; // metres, thickness of a bone
const HEAD = 0.1; // metres, radius of the head
const NOSE = 0.045; // metres, radius of the nose, which sits on the head's rim and tells where a body looks
const COLOURS = ["trunk", "left", "right", "ghost", "grid", "shadow", "accent"];

function decode(track, joints) {
  const bytes = Uint8Array.from(atob(track.data), (c) => c.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  const out = new Float32Array(track.frames * joints * 3);
  for (let i = 0; i < out.length; i++) {
    out[i] = track.centre[i % 3] + track.scale * view.getInt16(2 * i, true);
  }
  return out;
}

// A body's path, smoothed over a second, so that the camera follows without shaking.
function smoothRoot(body, stride, frames, fps) {
  const half = Math.round(fps / 2);
  const out = new Float32Array(frames * 3);
  for (let t = 0; t < frames; t++) {
    const from = Math.max(0, t - half);
    const to = Math.min(frames - 1, t + half);
    for (let s = from; s <= to; s++) {
      for (let a = 0; a < 3; a++) out[3 * t + a] += body[s * stride + a] / (to - from + 1);
    }
  }
  return out;
}

function range(values, axis) {
  let low = Infinity;
  let high = -Infinity;
  for (let i = axis; i < values.length; i += 3) {
    low = Math.min(low, values[i]);
    high = Math.max(high, values[i]);
  }
  return [low, high];
}

class Camera {
  constructor(yaw, pitch, distance) {
    this.yaw = yaw;
    this.pitch = pitch;
    this.distance = distance;
  }

  // Fixes the view for one pane of that many pixels.
  aim(target, width, height) {
    const [sy, cy] = [Math.sin(this.yaw), Math.cos(this.yaw)];
    const [sp, cp] = [Math.sin(this.pitch), Math.cos(this.pitch)];
    this.right = [cy, 0, -sy];
    this.up = [-sp * sy, cp, -sp * cy];
    this.back = [sy * cp, sp, cy * cp];
    this.target = target;
    this.focal = LENS * Math.min(height, width * 1.5);
    this.centre = [width / 2, height / 2];
  }

  // [x, y, depth]: pixels from the pane's top left corner, and metres in front of the camera.
  project(x, y, z) {
    const [dx, dy, dz] = [x - this.target[0], y - this.target[1], z - this.target[2]];
    const along = (v) => dx * v[0] + dy * v[1] + dz * v[2];
    const depth = this.distance - along(this.back);
    const scale = this.focal / Math.max(depth, NEAR);
    return [this.centre[0] + along(this.right) * scale, this.centre[1] - along(this.up) * scale, depth];
  }
}

// Everything that is painted into one pane, back to front.
class Painter {
  // `scene` knows parents, sides and head of the skeleton, the stride between frames and the floor's height.
  constructor(ctx, camera, colours, scene) {
    Object.assign(this, { ctx, camera, colours, scene });
    ctx.lineCap = "round";
    ctx.lineJoin = "round";
  }

  floor() {
    const [x0, z0] = [Math.round(this.camera.target[0]), Math.round(this.camera.target[2])];
    const shades = Array.from({ length: 8 }, () => new Path2D());
    const line = (ax, az, bx, bz) => {
      const a = this.camera.project(ax, this.scene.floor, az);
      const b = this.camera.project(bx, this.scene.floor, bz);
      if (a[2] < NEAR || b[2] < NEAR) return;
      const away = Math.hypot((ax + bx) / 2 - this.camera.target[0], (az + bz) / 2 - this.camera.target[2]);
      const shade = Math.floor((1 - away / GRID_RADIUS) * shades.length);
      if (shade < 0) return;
      shades[shade].moveTo(a[0], a[1]);
      shades[shade].lineTo(b[0], b[1]);
    };
    for (let i = -GRID_RADIUS; i <= GRID_RADIUS; i++) {
      for (let j = -GRID_RADIUS; j < GRID_RADIUS; j++) {
        line(x0 + i, z0 + j, x0 + i, z0 + j + 1);
        line(x0 + j, z0 + i, x0 + j + 1, z0 + i);
      }
    }
    this.ctx.strokeStyle = this.colours.grid;
    this.ctx.lineWidth = 1;
    shades.forEach((path, shade) => {
      this.ctx.globalAlpha = (shade + 1) / shades.length;
      this.ctx.stroke(path);
    });
    this.ctx.globalAlpha = 1;
  }

  // The way of the pelvis on the floor: all of it thinly, what is behind the figure more strongly.
  path(track, frame) {
    const { body, frames } = track;
    this.ctx.strokeStyle = this.colours.accent;
    for (const [end, alpha, wide] of [[frames - 1, 0.3, 1], [Math.min(frame, frames - 1), 0.7, 2]]) {
      this.ctx.globalAlpha = alpha;
      this.ctx.lineWidth = wide;
      this.ctx.beginPath();
      let drawing = false;
      for (let t = 0; t <= end; t++) {
        const p = this.camera.project(body[t * this.scene.stride], this.scene.floor, body[t * this.scene.stride + 2]);
        if (p[2] < NEAR) drawing = false;
        else if (drawing) this.ctx.lineTo(p[0], p[1]);
        else this.ctx.moveTo(p[0], p[1]);
        if (p[2] >= NEAR) drawing = true;
      }
      this.ctx.stroke();
    }
    this.ctx.globalAlpha = 1;
  }

  bones(track, frame, flat) {
    const start = Math.min(frame, track.frames - 1) * this.scene.stride;
    const points = this.scene.parents.map((_, j) => {
      const [x, y, z] = track.body.subarray(start + 3 * j, start + 3 * j + 3);
      return this.camera.project(x, flat ? this.scene.floor : y, z);
    });
    const bones = this.scene.parents.map((parent, j) => ({ a: points[parent], b: points[j], joint: j }));
    return { points, bones: bones.filter((bone) => bone.a && bone.a[2] > NEAR && bone.b[2] > NEAR) };
  }

  shadow(track, frame) {
    this.ctx.strokeStyle = this.colours.shadow;
    this.ctx.lineWidth = (this.camera.focal / this.camera.distance) * LIMB * 1.6;
    this.ctx.beginPath();
    for (const { a, b } of this.bones(track, frame, true).bones) {
      this.ctx.moveTo(a[0], a[1]);
      this.ctx.lineTo(b[0], b[1]);
    }
    this.ctx.stroke();
  }

  // The nose, before the head by the chest's direction, since no joint says where a body looks.
  nose(track, frame) {
    const start = Math.min(frame, track.frames - 1) * this.scene.stride;
    const at = (j) => track.body.subarray(start + 3 * j, start + 3 * j + 3);
    const [left, right, neck] = this.scene.face.map(at);
    const head = at(this.scene.head);
    const across = left.map((v, i) => v - right[i]);
    const up = head.map((v, i) => v - neck[i]);
    const ahead = [0, 1, 2].map((i) => across[(i + 1) % 3] * up[(i + 2) % 3] - across[(i + 2) % 3] * up[(i + 1) % 3]);
    const length = Math.max(Math.hypot(...ahead), 1e-9);
    return this.camera.project(...[0, 1, 2].map((i) => head[i] + (HEAD * ahead[i]) / length));
  }

  body(track, frame, ghost) {
    const { points, bones } = this.bones(track, frame, false);
    const head = points[this.scene.head];
    const items = bones.map((bone) => ({ ...bone, depth: (bone.a[2] + bone.b[2]) / 2 }));
    items.push({ joint: this.scene.head, depth: head[2], circle: head, radius: HEAD });
    const nose = this.nose(track, frame);
    items.push({ joint: this.scene.head, depth: nose[2], circle: nose, radius: NOSE, pale: true });
    items.sort((one, two) => two.depth - one.depth);
    this.ctx.globalAlpha = ghost ? 0.8 : 1;
    for (const { a, b, joint, depth, circle, radius, pale } of items) {
      if (depth < NEAR) continue;
      const colour = ghost || pale ? this.colours.ghost : this.colours[COLOURS[this.scene.sides[joint]]];
      const scale = this.camera.focal / depth;
      this.ctx.beginPath();
      if (circle) {
        this.ctx.fillStyle = colour;
        this.ctx.arc(circle[0], circle[1], radius * scale * (ghost ? 0.7 : 1), 0, 2 * Math.PI);
        this.ctx.fill();
      } else {
        this.ctx.strokeStyle = colour;
        this.ctx.lineWidth = Math.max(1.5, LIMB * scale * (ghost ? 0.5 : 1));
        this.ctx.moveTo(a[0], a[1]);
        this.ctx.lineTo(b[0], b[1]);
        this.ctx.stroke();
      }
    }
    this.ctx.globalAlpha = 1;
  }
}
