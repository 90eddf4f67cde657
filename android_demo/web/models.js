// The two networks, by LiteRT.js: the face finder and the student, each compared with its hash before it is opened.
import { loadAndCompile, loadLiteRt, Tensor } from '@litertjs/core';

import { RESAMPLING, alignedCrop, area, hint, knownTemplate, looseCrop, rounded, seenCrop } from './faces.js';

const FINDER_SHA256 = '3bc182eb9f33925d9e58b5c8d59308a760f4adea8f282370e428c51212c26633';
const SIDE = 128;
let runtime = null;

async function bytes(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(`${path} is missing on this server: start it with "make web".`);
  return new Uint8Array(await answer.arrayBuffer());
}

async function sha256(data) {
  // Browsers hash in secure contexts alone; there the size must do.
  if (!globalThis.crypto?.subtle) return null;
  const digest = new Uint8Array(await crypto.subtle.digest('SHA-256', data));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, '0')).join('');
}

/** Words for what is wrong with a sidecar, or null. */
export function wrongSidecar(json) {
  if (json?.schema_version !== 1) return 'its schema is not 1';
  if (json.format !== 'tflite') return `the model is ${json.format}, this page runs tflite alone`;
  if (json.input?.layout !== 'NHWC') return 'its input is not NHWC';
  if (!['float32', 'uint8'].includes(json.input.dtype)) return `its input is ${json.input.dtype}`;
  if (!['cosine', 'euclidean'].includes(json.metric)) return `its metric ${json.metric} is unknown`;
  if (!knownTemplate(json.crop?.template)) return `it wants a crop called ${json.crop?.template}`;
  if (json.crop.resampling !== RESAMPLING) return 'its crop is reduced in a way that this page does not know';
  return json.alpha?.input ? 'it takes an alpha with each face' : null;
}

/** The sidecar and the model's bytes, checked. */
export async function readStudent(path) {
  let sidecar;
  try {
    sidecar = JSON.parse(new TextDecoder().decode(await bytes(`${path}.json`)));
  } catch (problem) {
    throw new Error(`The model's sidecar cannot be read: ${problem.message}`);
  }
  const wrong = wrongSidecar(sidecar);
  if (wrong) throw new Error(`The model's sidecar cannot be used: ${wrong}.`);
  const data = await bytes(path);
  const digest = await sha256(data);
  if (data.length !== sidecar.bytes || (digest && digest !== sidecar.sha256)) {
    throw new Error('The model is damaged or not the one of its sidecar: run "make web" again.');
  }
  return { sidecar, data };
}

export class Demo {
  static async open() {
    const { sidecar, data } = await readStudent('models/student.tflite');
    const finder = await bytes('models/face_finder.tflite');
    const digest = await sha256(finder);
    if (digest && digest !== FINDER_SHA256) throw new Error('The face finder is damaged: run "make web" again.');
    // Once a page, however many demos are opened.
    runtime ??= loadLiteRt('vendor/litert/wasm/');
    await runtime;
    const demo = new Demo();
    demo.sidecar = sidecar;
    demo.px = sidecar.input.shape[1];
    demo.finder = await loadAndCompile(finder, { accelerator: 'wasm' });
    demo.student = await loadAndCompile(data, { accelerator: 'wasm' });
    return demo;
  }

  /** Embedding of an aligned crop of `px` pixels. */
  async embed({ data }) {
    const fed = this.sidecar.input.dtype === 'uint8'
      ? Uint8Array.from(data) : Float32Array.from(data, (value) => Math.fround(value / 255));
    const [embedding] = await run(this.student, fed, [1, this.px, this.px, 3]);
    if (!embedding.every(Number.isFinite)) throw new Error('The network gave no number for this face; try again.');
    return embedding;
  }

  /** All faces, the surest first: {score, box: [left, top, right, bottom], landmarks: five points}. */
  async find(photo) {
    const scale = SIDE / Math.max(photo.width, photo.height);
    const width = Math.max(1, rounded(photo.width * scale));
    const height = Math.max(1, rounded(photo.height * scale));
    const [left, top] = [Math.floor((SIDE - width) / 2), Math.floor((SIDE - height) / 2)];
    const small = area(photo, width, height);
    const fed = new Float32Array(SIDE * SIDE * 3).fill(-1);
    for (let y = 0; y < height; y++) {
      for (let i = 0; i < width * 3; i++) {
        fed[((y + top) * SIDE + left) * 3 + i] = small.data[y * width * 3 + i] / 127.5 - 1;
      }
    }
    const outputs = await run(this.finder, fed, [1, SIDE, SIDE, 3]);
    const [values, logits] = outputs[0].length > outputs[1].length ? outputs : [outputs[1], outputs[0]];
    const found = [];
    CENTRES.forEach((centre, i) => {
      const sure = 1 / (1 + Math.exp(-logits[i]));
      if (sure < 0.5) return;
      const p = Array.from(values.subarray(i * 16, i * 16 + 16), (value, k) => {
        const size = k === 2 || k === 3;
        return ((size ? value : value + centre[k % 2] * SIDE - (k % 2 ? top : left)) * photo.width) / width;
      });
      const eyes = [[p[4], p[5]], [p[6], p[7]]].sort((one, other) => one[0] - other[0]);
      found.push({
        score: sure,
        box: [p[0] - p[2] / 2, p[1] - p[3] / 2, p[0] + p[2] / 2, p[1] + p[3] / 2],
        landmarks: [...eyes, [p[8], p[9]], [p[10], p[11]], [p[10], p[11]]],
      });
    });
    return merged(found);
  }

  /** The largest face or null; where there is none, a second look within a border, for faces that fill the picture. */
  async largest(photo) {
    let border = 0;
    let faces = await this.find(photo);
    if (faces.length === 0) {
      border = Math.floor(Math.max(photo.width, photo.height) / 2);
      faces = await this.find(bordered(photo, border));
    }
    const size = ({ box }) => (box[2] - box[0]) * (box[3] - box[1]);
    const best = faces.reduce((one, other) => (one && size(one) >= size(other) ? one : other), null);
    return best && {
      score: best.score,
      box: best.box.map((value) => value - border),
      landmarks: best.landmarks.map((point) => point.map((value) => value - border)),
    };
  }

  /** The largest face, what the network sees of it, the hint, and the embedding; null where there is no face. */
  async look(photo, sliderPx) {
    const face = await this.largest(photo);
    if (!face) return null;
    const { template, template_px: templatePx } = this.sidecar.crop;
    const aligned = alignedCrop(looseCrop(photo, face.landmarks), template, templatePx);
    const seen = seenCrop(aligned, sliderPx, this.px);
    const [left, right] = face.landmarks;
    const eyes = Math.hypot(right[0] - left[0], right[1] - left[1]);
    return { face, seen, hint: hint(eyes, aligned, this.px), embedding: await this.embed(seen) };
  }

  /** Faces/s and percentiles in microseconds of one face at a time, in a hot loop, and on what. */
  async benchmark(faces = 2000) {
    const noise = { data: Uint8Array.from({ length: this.px * this.px * 3 }, (_, i) => (i * 2654435761) >>> 24) };
    for (let i = 0; i < faces / 10; i++) await this.embed(noise);
    const began = performance.now();
    const times = [];
    for (let i = 0; i < faces; i++) {
      const start = performance.now();
      await this.embed(noise);
      times.push(1000 * (performance.now() - start));
    }
    const seconds = (performance.now() - began) / 1000;
    times.sort((a, b) => a - b);
    const at = (share) => Math.round(times[Math.max(0, Math.ceil(share * faces) - 1)]);
    return {
      model: this.sidecar.model, file: this.sidecar.file, precision: this.sidecar.precision,
      sha256: this.sidecar.sha256, runtime: 'LiteRT.js 2.5.3, WebAssembly, 1 thread', device: navigator.userAgent,
      threads: 1, batch: 1, preprocessing: 'outside', faces, faces_per_second: Math.round(10 * faces / seconds) / 10,
      p50_us: at(0.5), p95_us: at(0.95),
    };
  }
}

async function run(model, data, shape) {
  const input = new Tensor(data, shape);
  const outputs = await model.run([input]);
  // Tensors live in the WebAssembly's own memory, which nobody else cleans.
  const copies = await Promise.all(outputs.map(async (output) => (await output.data()).slice()));
  outputs.forEach((output) => output.delete());
  input.delete();
  return copies;
}

/** 16 x 16 cells of two anchors, then 8 x 8 cells of six. */
const CENTRES = [[16, 2], [8, 6]].flatMap(([cells, anchors]) =>
  Array.from({ length: cells * cells * anchors }, (_, i) => {
    const cell = Math.floor(i / anchors);
    return [((cell % cells) + 0.5) / cells, (Math.floor(cell / cells) + 0.5) / cells];
  }));

function merged(found) {
  const faces = [];
  let rest = [...found].sort((one, other) => other.score - one.score);
  while (rest.length) {
    const [best] = rest;
    const same = rest.filter((one) => one === best || overlap(one.box, best.box) > 0.3);
    rest = rest.filter((one) => !same.includes(one));
    const total = same.reduce((sum, one) => sum + one.score, 0);
    const blend = (read) => same.reduce((sum, one) => sum + one.score * read(one), 0) / total;
    faces.push({
      score: best.score,
      box: best.box.map((_, i) => blend((one) => one.box[i])),
      landmarks: placed(
        best.landmarks.map((_, i) => [0, 1].map((axis) => blend((one) => one.landmarks[i][axis])))),
    });
  }
  return faces;
}

/** The finder's points moved to where the template's are: in eye distances along and across the line of the eyes. */
const OFFSETS = [[0.027, -0.019], [-0.027, -0.019], [0, -0.086], [-0.419, -0.14], [0.419, -0.14]];
function placed(points) {
  const [x, y] = [points[1][0] - points[0][0], points[1][1] - points[0][1]];
  return points.map(([px, py], i) => {
    const [along, across] = OFFSETS[i];
    return [px + along * x - across * y, py + along * y + across * x];
  });
}

function overlap(a, b) {
  const width = Math.max(0, Math.min(a[2], b[2]) - Math.max(a[0], b[0]));
  const height = Math.max(0, Math.min(a[3], b[3]) - Math.max(a[1], b[1]));
  const all = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height;
  return all > 0 ? (width * height) / all : 0;
}

function bordered({ width, height, data }, border) {
  const [wide, high] = [width + 2 * border, height + 2 * border];
  const out = new Uint8Array(wide * high * 3);
  const inside = (value, size) => Math.min(size - 1, Math.max(0, value - border));
  for (let y = 0, to = 0; y < high; y++) {
    for (let x = 0; x < wide; x++, to += 3) {
      const from = (inside(y, height) * width + inside(x, width)) * 3;
      out[to] = data[from];
      out[to + 1] = data[from + 1];
      out[to + 2] = data[from + 2];
    }
  }
  return { width: wide, height: high, data: out };
}
