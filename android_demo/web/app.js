// The page: camera or picture in, one look after the other, and what the person asks for.
import { SLIDER, score } from './faces.js';
import { Demo } from './models.js';

const at = (id) => document.getElementById(id);
const [view, seen, video] = [at('view'), at('seen'), at('video')];
const FMR = '1e-3';
const MOST_OF_ONE = 5;

/** Name to its embeddings; they live as long as the page. */
const people = new Map();
let demo = null;
let stream = null;
let current = null;
let looking = false;
let starting = false;
/** The picture that was chosen, with its size in view; null since the camera was started. */
let still = null;
/** The look that was asked for last. */
let last = Promise.resolve();

function say(words, kind = '') {
  at('status').textContent = words;
  at('status').className = kind;
}

const sliderPx = () => SLIDER[Number(at('slider').value)];

function pixels(source, width, height) {
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext('2d', { willReadFrequently: true });
  context.drawImage(source, 0, 0, width, height);
  const { data } = context.getImageData(0, 0, width, height);
  const rgb = new Uint8Array(width * height * 3);
  for (let from = 0, to = 0; from < data.length; from += 4, to += 3) {
    rgb.set(data.subarray(from, from + 3), to);
  }
  return { width, height, data: rgb };
}

/** Look at a picture or a frame, and draw it with what was found, when the looks asked for before have ended. */
function look(source, width, height) {
  last = last.catch(() => {}).then(() => lookNow(source, width, height));
  return last;
}

async function lookNow(source, width, height) {
  const found = await demo.look(pixels(source, width, height), sliderPx());
  [view.width, view.height] = [width, height];
  const context = view.getContext('2d');
  context.drawImage(source, 0, 0, width, height);
  current = found;
  at('hint').textContent = found ? (found.hint ?? '') : 'No face was found.';
  if (!found) return;
  context.strokeStyle = '#86efac';
  context.lineWidth = Math.max(2, width / 250);
  const [left, top, right, bottom] = found.face.box;
  context.strokeRect(left, top, right - left, bottom - top);
  for (const point of found.face.landmarks) {
    context.beginPath();
    context.arc(point[0], point[1], context.lineWidth, 0, 2 * Math.PI);
    context.stroke();
  }
  const { width: side, data } = found.seen;
  [seen.width, seen.height] = [side, side];
  const small = new ImageData(side, side);
  for (let i = 0; i < side * side; i++) small.data.set([...data.subarray(3 * i, 3 * i + 3), 255], 4 * i);
  seen.getContext('2d').putImageData(small, 0, 0);
}

async function frames() {
  if (looking) return;
  looking = true;
  try {
    while (stream) {
      if (video.readyState >= HTMLMediaElement.HAVE_CURRENT_DATA) {
        await look(video, video.videoWidth, video.videoHeight);
      }
      await new Promise((next) => { setTimeout(next, 50); });
    }
  } catch (problem) {
    stop();
    say(problem.message);
  } finally {
    looking = false;
  }
}

function stop() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = null;
  video.srcObject = null;
  at('camera').textContent = 'Start camera';
  at('camera').setAttribute('aria-pressed', 'false');
}

async function start() {
  // A second press while the browser asks would open a second camera, which nobody could stop.
  if (starting) return;
  starting = true;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: 'user', width: 640, height: 480 } });
    still = null;
  } catch (problem) {
    const denied = problem.name === 'NotAllowedError';
    say(denied ? 'The camera is denied to this page. Allow it in the browser, or choose a picture.'
      : `No camera can be opened (${problem.message}). Choose a picture instead.`);
    return;
  } finally {
    starting = false;
  }
  stream.getVideoTracks()[0].addEventListener('ended', () => { stop(); say('The camera was switched off.'); });
  video.srcObject = stream;
  await video.play();
  at('camera').textContent = 'Stop camera';
  at('camera').setAttribute('aria-pressed', 'true');
  say('Look into the camera.');
  frames();
}

function list() {
  const chosen = at('whom').value;
  at('whom').replaceChildren(new Option('anyone enrolled', ''), ...[...people.keys()].map((name) => new Option(name, name)));
  at('whom').value = people.has(chosen) ? chosen : '';
  const rows = [...people].map(([name, faces]) => {
    const row = document.createElement('li');
    const remove = document.createElement('button');
    remove.type = 'button';
    remove.className = 'plain';
    remove.textContent = 'Delete';
    remove.setAttribute('aria-label', `Delete ${name}`);
    remove.addEventListener('click', () => { people.delete(name); list(); say(`${name} was deleted.`); });
    row.append(`${name} (${faces.length} of ${MOST_OF_ONE})`, remove);
    return row;
  });
  if (rows.length === 0) {
    rows.push(Object.assign(document.createElement('li'), { textContent: 'Nobody is enrolled yet.' }));
  }
  at('people').replaceChildren(...rows);
}

/** The face in view, or null after saying what is wrong with it. */
function good() {
  if (!current) say('No face is in view: start the camera or choose a picture.');
  else if (current.hint) say(current.hint);
  else return current;
  return null;
}

at('camera').addEventListener('click', () => (stream ? stop() : start()));

at('file').addEventListener('change', async ({ target }) => {
  const [file] = target.files;
  if (!file) return;
  stop();
  try {
    const picture = await createImageBitmap(file);
    const scale = Math.min(1, 1024 / Math.max(picture.width, picture.height));
    still = [picture, Math.max(1, Math.round(picture.width * scale)), Math.max(1, Math.round(picture.height * scale))];
    await look(...still);
    say(current ? `A face was found in ${file.name}.` : `No face was found in ${file.name}; choose another picture.`);
  } catch (problem) {
    say(`${file.name} is no picture that this browser can read (${problem.message}).`);
  }
  target.value = '';
});

at('slider').addEventListener('input', async () => {
  at('px').textContent = `${sliderPx()} px`;
  try {
    // The camera's next frame is seen at the new size anyway.
    if (still && !stream) await look(...still);
  } catch (problem) {
    say(problem.message);
  }
});

at('enrol').addEventListener('submit', (event) => {
  event.preventDefault();
  const name = at('name').value.replace(/\s+/g, ' ').trim();
  if (!name) { say('Type a name first.'); return; }
  const face = good();
  if (!face) return;
  const faces = [...(people.get(name) ?? []), face.embedding].slice(-MOST_OF_ONE);
  people.set(name, faces);
  list();
  say(`${name} is enrolled (${faces.length} of ${MOST_OF_ONE} faces).`);
});

at('verify').addEventListener('click', () => {
  const face = good();
  if (!face) return;
  const whom = at('whom').value;
  let best = null;
  for (const [name, faces] of people) {
    for (const one of whom && whom !== name ? [] : faces) {
      const value = score(demo.sidecar.metric, one, face.embedding);
      if (!best || value > best.value) best = { name, value };
    }
  }
  if (!best) { say('Nobody is enrolled yet: enrol someone first.'); return; }
  const threshold = demo.sidecar.thresholds[FMR];
  if (threshold?.value == null) {
    say(`${best.name}: score ${best.value.toFixed(3)}. No decision: ${threshold?.reason ?? 'the sidecar has no threshold'}.`);
    return;
  }
  const same = best.value >= threshold.value;
  say(`${same ? 'Same person as' : 'Not'} ${best.name}: score ${best.value.toFixed(3)}, threshold `
    + `${threshold.value.toFixed(3)} at a false match rate of ${FMR} `
    + 'for each enrolled face compared: the more there are, the more often a stranger passes.', same ? 'same' : 'different');
});

at('benchmark').addEventListener('click', async () => {
  at('benchmark').disabled = true;
  stop();
  at('figures').textContent = 'Measuring …';
  try {
    const result = await demo.benchmark();
    at('figures').textContent = `${result.faces_per_second} faces/s, p50 ${result.p50_us} µs, p95 ${result.p95_us} µs; `
      + `${result.file}, ${result.runtime}`;
    const link = at('json');
    URL.revokeObjectURL(link.href);
    link.href = URL.createObjectURL(new Blob([`${JSON.stringify(result)}\n`], { type: 'application/json' }));
    link.hidden = false;
  } catch (problem) {
    at('figures').textContent = problem.message;
  }
  at('benchmark').disabled = false;
});

const controls = ['camera', 'file', 'verify', 'benchmark'].map(at);
controls.forEach((one) => { one.disabled = true; });
try {
  demo = await Demo.open();
  controls.forEach((one) => { one.disabled = false; });
  if (navigator.mediaDevices?.getUserMedia) {
    say('Ready: start the camera or choose a picture.');
  } else {
    at('camera').disabled = true;
    say('This address is no secure one (https or localhost), so the browser gives no camera. Choose a picture.');
  }
} catch (problem) {
  say(problem.message);
}
