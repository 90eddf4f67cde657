// From a photo and five points to what the network sees, and how alike two embeddings are: the JavaScript of what
// faces/align.py, export/crops.py and faces/verification.py do, held to the same vectors.
//
// An image is {width, height, data}: R, G, B bytes row by row. A point is [x, y], or null where it is unknown.

export const RESAMPLING = 'bilinear to the template, then bicubic with antialias to the input, both in uint8';
export const SLIDER = [96, 64, 32, 16];

const TEMPLATES = {
  arcface: {
    px: 112,
    points: [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]],
  },
  dlib: { px: 150, points: [[46.7, 44.9], [99.2, 43.8], [74.0, 76.3], [51.0, 100.5], [96.3, 100.0]] },
};
const LOOSE_PX = 128;
const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
const LOOSE = (() => {
  const { points } = TEMPLATES.arcface;
  const [x, y] = [0, 1].map((axis) => mean(points.map((point) => point[axis])));
  return points.map((point) => [((point[0] - x) * 36) / 35.237 + 64.03, ((point[1] - y) * 36) / 35.237 + 78.24]);
})();

/** Least-squares similarity [a, b, c, d, e, f] from source to target points; two known ones are needed. */
export function similarity(source, target) {
  const known = source.map((point, i) => [point, target[i]]).filter(([one, other]) => one && other);
  if (known.length < 2) throw new Error('Too little of the face is visible; look into the camera.');
  const [sx, sy] = [0, 1].map((axis) => mean(known.map(([point]) => point[axis])));
  const [tx, ty] = [0, 1].map((axis) => mean(known.map(([, point]) => point[axis])));
  let [along, across, spread] = [0, 0, 0];
  for (const [[px, py], [qx, qy]] of known) {
    const [x, y, u, v] = [px - sx, py - sy, qx - tx, qy - ty];
    along += x * u + y * v;
    across += x * v - y * u;
    spread += x * x + y * y;
  }
  if (!(spread > 0)) throw new Error('The face is too small to align; come nearer.');
  const [a, b] = [along / spread, across / spread];
  return [a, -b, tx - a * sx + b * sy, b, a, ty - b * sx - a * sy];
}

function invert([a, b, c, d, e, f]) {
  const determinant = a * e - b * d;
  const [p, q, r, s] = [e / determinant, -b / determinant, -d / determinant, a / determinant];
  return [p, q, -(p * c + q * f), r, s, -(r * c + s * f)];
}

const clamp = (value, size) => Math.min(size - 1, Math.max(0, value));

/** Nearest whole number; a half goes to the even one, as in Python and Java and not in Math.round. */
export function rounded(value) {
  const floor = Math.floor(value);
  const rest = value - floor;
  return rest > 0.5 || (rest === 0.5 && floor % 2 !== 0) ? floor + 1 : floor;
}

const level = (value) => Math.min(255, Math.max(0, rounded(value)));

function warp(image, matrix, size) {
  let [a, b, c, d, e, f] = matrix;
  const scale = Math.hypot(a, d);
  if (scale < 0.5) {
    // Bilinear sampling alone would alias; and the first pixel's centre lies at (ratio - 1) / 2.
    const width = Math.max(1, rounded(image.width * scale * 2));
    const height = Math.max(1, rounded(image.height * scale * 2));
    const [rx, ry] = [image.width / width, image.height / height];
    image = area(image, width, height);
    c += (a * (rx - 1)) / 2 + (b * (ry - 1)) / 2;
    f += (d * (rx - 1)) / 2 + (e * (ry - 1)) / 2;
    [a, b, d, e] = [a * rx, b * ry, d * rx, e * ry];
  }
  const back = invert([a, b, c, d, e, f]);
  const data = new Uint8Array(size * size * 3);
  const source = image.data;
  for (let y = 0, at = 0; y < size; y++) {
    for (let x = 0; x < size; x++, at += 3) {
      const u = back[0] * x + back[1] * y + back[2];
      const v = back[3] * x + back[4] * y + back[5];
      const [x0, y0] = [Math.floor(u), Math.floor(v)];
      const [fx, fy] = [u - x0, v - y0];
      const [left, right] = [clamp(x0, image.width) * 3, clamp(x0 + 1, image.width) * 3];
      const top = clamp(y0, image.height) * image.width * 3;
      const bottom = clamp(y0 + 1, image.height) * image.width * 3;
      for (let k = 0; k < 3; k++) {
        const upper = source[top + left + k] * (1 - fx) + source[top + right + k] * fx;
        const lower = source[bottom + left + k] * (1 - fx) + source[bottom + right + k] * fx;
        data[at + k] = level(upper * (1 - fy) + lower * fy);
      }
    }
  }
  return { width: size, height: size, data };
}

function normalised(weights) {
  const sum = weights.reduce((a, b) => a + b, 0);
  const scaled = weights.map((weight) => weight / sum);
  const from = scaled.findIndex((weight) => weight !== 0);
  const to = scaled.length - [...scaled].reverse().findIndex((weight) => weight !== 0);
  return { from, weights: scaled.slice(from, to) };
}

function areaWeights(source, target) {
  const ratio = source / target;
  return Array.from({ length: target }, (_, i) =>
    normalised(Array.from({ length: source }, (_, j) =>
      Math.max(0, Math.min((i + 1) * ratio, j + 1) - Math.max(i * ratio, j)))));
}

function cubicWeights(source, target) {
  const scale = source / target;
  const wide = Math.max(scale, 1);
  return Array.from({ length: target }, (_, i) =>
    normalised(Array.from({ length: source }, (_, j) => {
      const x = Math.abs((j + 0.5 - (i + 0.5) * scale) / wide);
      if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
      return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
    })));
}

function separable(image, across, down) {
  const [width, height] = [across.length, down.length];
  const narrow = new Float64Array(image.height * width * 3);
  across.forEach(({ from, weights }, x) => {
    for (let y = 0; y < image.height; y++) {
      for (let k = 0; k < 3; k++) {
        let sum = 0;
        for (let j = 0; j < weights.length; j++) sum += weights[j] * image.data[(y * image.width + from + j) * 3 + k];
        narrow[(y * width + x) * 3 + k] = sum;
      }
    }
  });
  const data = new Uint8Array(height * width * 3);
  const row = width * 3;
  down.forEach(({ from, weights }, y) => {
    for (let i = 0; i < row; i++) {
      let sum = 0;
      for (let j = 0; j < weights.length; j++) sum += weights[j] * narrow[(from + j) * row + i];
      data[y * row + i] = level(sum);
    }
  });
  return { width, height, data };
}

// Weights depend on the two sizes alone; a camera asks for the same ones with every frame.
const cache = new Map();
function weights(make, source, target) {
  const key = `${make.name} ${source} ${target}`;
  if (!cache.has(key)) cache.set(key, make(source, target));
  return cache.get(key);
}

/** Each pixel the mean of the area it covers. */
export function area(image, width, height) {
  return separable(image, weights(areaWeights, image.width, width), weights(areaWeights, image.height, height));
}

/** A square, by Keys' cubic widened where the image becomes smaller. */
export function cubic(image, size) {
  if (image.width === size) return image;
  return separable(image, weights(cubicWeights, image.width, size), weights(cubicWeights, image.height, size));
}

/** The stored crop of a photo: 128 x 128 px, and its points. */
export function looseCrop(photo, landmarks) {
  const m = similarity(landmarks, LOOSE);
  // Landmarks are kept in single precision at rest.
  const points = landmarks.map((point) => point && [
    Math.fround(m[0] * point[0] + m[1] * point[1] + m[2]), Math.fround(m[3] * point[0] + m[4] * point[1] + m[5]),
  ]);
  return { image: warp(photo, m, LOOSE_PX), landmarks: points };
}

/** A template's crop of `px` pixels. */
export function alignedCrop(loose, template, px) {
  const { px: base, points } = TEMPLATES[template];
  const target = points.map((point) => point.map((value) => ((value + 0.5) * px) / base - 0.5));
  return warp(loose.image, similarity(loose.landmarks, target), px);
}

/** What the network sees of the aligned crop, reduced to `px` first. */
export function seenCrop(aligned, px, inputPx) {
  return cubic(cubic(aligned, px), inputPx);
}

export const knownTemplate = (name) => Object.hasOwn(TEMPLATES, name);

/** Cosine, or minus the Euclidean distance. */
export function score(metric, a, b) {
  let [dot, aa, bb, squared] = [0, 0, 0, 0];
  for (let i = 0; i < a.length; i++) {
    dot += a[i] * b[i];
    aa += a[i] * a[i];
    bb += b[i] * b[i];
    squared += (a[i] - b[i]) ** 2;
  }
  if (metric === 'euclidean') return -Math.sqrt(squared);
  return dot / (Math.max(Math.sqrt(aa), 1e-12) * Math.max(Math.sqrt(bb), 1e-12));
}

/** One sentence where a face is too small, too dark or too blurred, else null; the app's own limits. */
export function hint(eyeDistance, aligned, neededPx) {
  const facePx = (eyeDistance * 112) / 35.237;
  if (facePx < neededPx) return `Too small: ${facePx.toFixed(0)} px, ${neededPx} are needed. Come nearer.`;
  if (mean(grey(aligned)) < 50) return 'Too dark: turn towards the light.';
  return sharpness(aligned) < 0.02 ? 'Too blurred: hold still, or wipe the lens.' : null;
}

function grey({ width, height, data }) {
  return Array.from({ length: width * height }, (_, i) =>
    0.299 * data[3 * i] + 0.587 * data[3 * i + 1] + 0.114 * data[3 * i + 2]);
}

/** Variance of the Laplacian over the variance, at 48 px. */
export function sharpness(aligned) {
  const side = Math.min(48, aligned.width);
  const g = grey(area(aligned, side, side));
  const [laplacian, inner] = [[], []];
  for (let y = 1; y < side - 1; y++) {
    for (let x = 1; x < side - 1; x++) {
      const i = y * side + x;
      laplacian.push(g[i - 1] + g[i + 1] + g[i - side] + g[i + side] - 4 * g[i]);
      inner.push(g[i]);
    }
  }
  const spread = variance(inner);
  return spread < 1e-9 ? 0 : variance(laplacian) / spread;
}

function variance(values) {
  const middle = mean(values);
  return mean(values.map((value) => (value - middle) ** 2));
}
