"use strict";
// Shapes as in the library: B C H W P L V D. Images are Float32Array [C, H, W], normalized, NaN where not measured.
const $ = id => document.getElementById(id);
const MIDDLE = 64; // pixels: larger files are cropped to their middle

async function unpack(name) {
  const text = $("file-" + name).textContent;
  const packed = Uint8Array.fromBase64?.(text) ?? await (await fetch("data:;base64," + text)).arrayBuffer();
  return new Response(new Response(packed).body.pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}
const asScript = (buffer, type = "text/javascript") => URL.createObjectURL(new Blob([buffer], {type}));
const load = url => new Promise((done, failed) => {
  document.head.append(Object.assign(document.createElement("script"), {src: url, onload: done, onerror: failed}));
});

let DATA, session;
// chip: {sensor, size: [H, W], pixels, time, latlon, vector}; state: what the controls say
let chip, state = {}, result, all; // all: tokens of the complete image, for similarity
let busy = false, again = false;

async function start() {
  const fetched = unpack("data.json").then(data => {
    DATA = JSON.parse(new TextDecoder().decode(data));
    DATA.chips.forEach((entry, number) => Object.assign(entry, {number, pixels: null}));
  });
  const [runtime, glue, wasm, model] = await Promise.all(
    ["ort.wasm.min.js", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm", "model.onnx"].map(unpack));
  await load(asScript(runtime));
  Object.assign(ort.env.wasm, {numThreads: 1, wasmBinary: wasm, wasmPaths: {mjs: asScript(glue)}});
  session = await ort.InferenceSession.create(new Uint8Array(model), {graphOptimizationLevel: "disabled"});
  await fetched;
  await choose(DATA.chips[0]);
  strip($("chips"), DATA.chips);
}

// ---- images

const TYPES = {uint8: Uint8Array, uint16: Uint16Array, int16: Int16Array, float32: Float32Array};

function decode(entry) { // the normalized pixels of a chip of the page, when it is first looked at
  if (entry.pixels) return entry;
  const bytes = Uint8Array.from(atob(entry.native), c => c.charCodeAt(0));
  entry.pixels = normalize(new TYPES[entry.type](bytes.buffer), entry.sensor, entry.size[0] * entry.size[1]);
  return entry;
}

// Native numbers [C, H, W] -> (native - mean) / std of each band; radar power in decibels first, no power is a hole.
function normalize(native, sensor, count, inDecibel = false) {
  const {bands, decibel} = DATA.sensors[sensor];
  const out = new Float32Array(native.length);
  bands.forEach(([, , mean, std], band) => {
    for (let i = band * count; i < (band + 1) * count; i++) {
      const value = !decibel || inDecibel ? native[i] : native[i] > 0 ? 10 * Math.log10(native[i]) : NaN;
      out[i] = (value - mean) / std;
    }
  });
  return out;
}

function stretch(pixels, count, bands) { // 2nd and 98th percentile of each shown band
  return bands.map(band => {
    const values = pixels.subarray(band * count, (band + 1) * count).filter(Number.isFinite).sort();
    const low = values[Math.floor(0.02 * values.length)] ?? 0, high = values[Math.floor(0.98 * (values.length - 1))] ?? 1;
    return high - low > 0.4 ? [low, high] : [(low + high) / 2 - 0.2, (low + high) / 2 + 0.2]; // flat bands stay flat
  });
}

function paint(canvas, [H, W], color) { // color(row, column) -> [r, g, b], 0..255
  Object.assign(canvas, {width: W, height: H});
  const context = canvas.getContext("2d"), image = context.createImageData(W, H);
  for (let y = 0, i = 0; y < H; y++) for (let x = 0; x < W; x++, i += 4) {
    image.data.set(color(y, x), i);
    image.data[i + 3] = 255;
  }
  context.putImageData(image, 0, 0);
}

const HOLE = [200, 120, 190], HIDDEN = [128, 128, 128];
function shade({sensor, size: [H, W], pixels}) { // pixels -> color of one place, by the stretch of the chip's own
  const shown = DATA.sensors[sensor].rgb, limits = stretch(pixels, H * W, shown);
  return (from, y, x) => shown.map((band, k) => {
    const value = from[(band * H + y) * W + x], [low, high] = limits[k];
    return Number.isFinite(value) ? 255 * (value - low) / (high - low || 1) : HOLE[k];
  });
}

// ---- the model

const grid = () => chip.size.map(side => Math.ceil(side / DATA.patch));

function inputs(visible, {bands, waves}, metadata) {
  const [H, W] = chip.size, count = H * W, {gsd, bands: own} = DATA.sensors[chip.sensor];
  const pixels = new Float32Array(bands.length * count);
  bands.forEach((band, k) => pixels.set(chip.pixels.subarray(band * count, (band + 1) * count), k * count));
  const known = metadata ? chip : {time: [0, 0, 0, 0], latlon: [0, 0, 0, 0]};
  const floats = (values, shape) => new ort.Tensor("float32", Float32Array.from(values), shape);
  return {
    pixels: floats(pixels.map(v => Number.isFinite(v) ? v : 0), [1, bands.length, H, W]),
    time: floats(known.time, [1, 4]), latlon: floats(known.latlon, [1, 4]), gsd: floats([chip.gsd ?? gsd], [1]),
    waves: floats(bands.map(band => waves[band]), [bands.length]),
    visible: new ort.Tensor("int64", BigInt64Array.from(visible, BigInt), [visible.length]),
    output_waves: floats(own.map(([, wave]) => wave), [own.length]),
  };
}

async function run(visible, bands, metadata) {
  const out = await session.run(inputs(visible, bands, metadata));
  return {chip: out.chip.data, patches: out.patches.data, dim: out.chip.dims[1], reconstruction: image(out.reconstruction.data)};
}

function image(rows) { // [L, C P P] -> [C, H, W]
  const [H, W] = chip.size, P = DATA.patch, C = DATA.sensors[chip.sensor].bands.length;
  const out = new Float32Array(C * H * W);
  for (let c = 0, i = 0; c < C; c++) for (let y = 0; y < H; y++) for (let x = 0; x < W; x++, i++) {
    out[i] = rows[(patchOf(y, x) * C + c) * P * P + (y % P) * P + x % P];
  }
  return out;
}

function measured() { // patches of which at least half was measured in every band
  const [H, W] = chip.size, [h, w] = grid(), missing = new Int32Array(h * w), pixels = new Int32Array(h * w);
  for (let y = 0; y < H; y++) for (let x = 0; x < W; x++) {
    const patch = patchOf(y, x);
    pixels[patch]++;
    for (let i = y * W + x; i < chip.pixels.length; i += H * W) if (!Number.isFinite(chip.pixels[i])) { missing[patch]++; break; }
  }
  return [...missing.keys()].filter(patch => 2 * missing[patch] <= pixels[patch]);
}

function random(seed) { // mulberry32
  return () => {
    seed = seed + 0x6D2B79F5 | 0;
    let t = Math.imul(seed ^ seed >>> 15, 1 | seed);
    t = t + Math.imul(t ^ t >>> 7, 61 | t) ^ t;
    return ((t ^ t >>> 14) >>> 0) / 4294967296;
  };
}

function hide() { // the share of the measured patches that the slider asks for
  const draw = random(state.seed), patches = measured(), order = patches.map(patch => [draw(), patch]).sort((a, b) => a[0] - b[0]);
  state.hidden = new Set(order.slice(0, Math.floor(state.ratio * patches.length)).map(([, patch]) => patch));
}

// ---- what is shown

async function update() { // runs the model again; changes that come meanwhile are taken up once
  if (busy) return void (again = true);
  busy = true;
  do {
    again = false;
    const visible = measured().filter(patch => !state.hidden.has(patch)), begin = performance.now();
    const given = state.bands.flatMap((on, band) => on ? [band] : []), options = {bands: given, waves: state.waves};
    if (!visible.length || !given.length) say("The model needs at least one patch and one band.", true);
    else {
      result = await run(visible, options, state.metadata);
      const time = Math.round(performance.now() - begin), counts = [given, state.bands, visible, measured()].map(a => a.length);
      say(`${counts[0]} of ${counts[1]} bands, ${counts[2]} of ${counts[3]} patches: ${time} ms.`);
      draw();
      performance.mark("answer");
      await new Promise(shown => setTimeout(shown));
      all = state.hidden.size ? await run(measured(), options, state.metadata) : result;
      similarity();
      nearest();
    }
  } while (again);
  busy = false;
}

function say(text, bad = false) {
  $("message").textContent = text;
  $("message").className = bad ? "bad" : "";
}

function draw() {
  const [H, W] = chip.size, color = shade(chip), {reconstruction} = result;
  const hidden = (y, x) => state.hidden.has(patchOf(y, x));
  paint($("image"), chip.size, (y, x) => color(chip.pixels, y, x));
  paint($("visible"), chip.size, (y, x) => hidden(y, x) ? HIDDEN : color(chip.pixels, y, x));
  paint($("reconstruction"), chip.size, (y, x) => color(state.decoded || hidden(y, x) ? reconstruction : chip.pixels, y, x));
  errors(hidden, reconstruction, H * W, W);
}

const patchOf = (y, x) => Math.floor(y / DATA.patch) * grid()[1] + Math.floor(x / DATA.patch);

function errors(hidden, reconstruction, count, W) {
  const bands = chip.pixels.length / count;
  let error = 0, baseline = 0, n = 0;
  for (let band = 0; band < bands; band++) {
    let sum = 0, seen = 0;
    const value = i => chip.pixels[band * count + i], at = i => hidden(Math.floor(i / W), i % W);
    for (let i = 0; i < count; i++) if (!at(i) && Number.isFinite(value(i))) { sum += value(i); seen++; }
    for (let i = 0; i < count; i++) if (at(i) && Number.isFinite(value(i))) {
      error += Math.abs(reconstruction[band * count + i] - value(i));
      baseline += Math.abs(sum / seen - value(i));
      n++;
    }
  }
  $("error").textContent = n ? `Mean error of hidden pixels ${(error / n).toFixed(2)} standard deviations; ` +
    `the mean of the visible pixels has ${(baseline / n).toFixed(2)}.` : "No patch is hidden.";
}

const cosine = (a, b) => {
  let ab = 0, aa = 0, bb = 0;
  for (let i = 0; i < a.length; i++) { ab += a[i] * b[i]; aa += a[i] * a[i]; bb += b[i] * b[i]; }
  return ab / Math.sqrt(aa * bb);
};

function similarity() { // cosines to the chosen patch, after the mean of all is taken off
  const {patches, dim} = all, seen = measured(), mean = new Float32Array(dim);
  patches.forEach((value, i) => mean[i % dim] += value / seen.length);
  const row = k => patches.subarray(k * dim, (k + 1) * dim).map((value, i) => value - mean[i]);
  const chosen = Math.max(seen.indexOf(state.chosen), 0), query = row(chosen), score = new Map(seen.map((p, k) => [p, cosine(query, row(k))]));
  paint($("similar"), chip.size, (y, x) => {
    const value = score.get(patchOf(y, x));
    if (patchOf(y, x) === seen[chosen]) return [213, 94, 0];
    return value === undefined ? HIDDEN : [253 - 253 * Math.max(value, 0), 250 - 120 * Math.max(value, 0), 240 - 62 * Math.max(value, 0)];
  });
  $("scale").textContent = "Blue: the same direction as the orange patch (cosine 1); white: 0 or less. All patches visible.";
}

function nearest() {
  const others = DATA.chips.filter(other => other !== chip).map(other => [cosine(all.chip, other.vector), other]);
  const best = others.sort((a, b) => b[0] - a[0]).slice(0, 6);
  strip($("near"), best.map(([, other]) => other), best.map(([value]) => `cosine ${value.toFixed(3)}`));
}

function strip(home, chips, notes = []) {
  home.querySelectorAll("button").forEach(button => button.remove());
  chips.forEach((entry, k) => {
    const button = document.createElement("button"), canvas = document.createElement("canvas"), text = document.createElement("span");
    const color = shade(decode(entry));
    paint(canvas, entry.size, (y, x) => color(entry.pixels, y, x));
    text.textContent = `${entry.sensor}${notes[k] ? ", " + notes[k] : ""}`;
    button.append(canvas, text);
    button.setAttribute("aria-label", `${entry.sensor}, chip ${entry.number + 1}`);
    button.setAttribute("aria-pressed", entry === chip);
    button.dataset.number = entry.number;
    button.onclick = () => choose(entry);
    home.append(button);
  });
}

// ---- controls

async function choose(entry) {
  chip = decode(entry);
  const {bands} = DATA.sensors[chip.sensor], keep = {ratio: 0.75, seed: 1, metadata: true, decoded: false, ...state};
  state = {...keep, chosen: measured()[Math.floor(measured().length / 2)], bands: bands.map(() => true), waves: bands.map(([, wave]) => wave)};
  hide();
  controls();
  document.querySelectorAll("#chips button").forEach(b => b.setAttribute("aria-pressed", +b.dataset.number === chip.number));
  await update();
}

function controls() {
  $("ratio").value = 100 * state.ratio;
  $("share").textContent = `${Math.round(100 * state.ratio)} %`;
  $("where").textContent = chip.where ?? "as the image has them";
  const {bands} = DATA.sensors[chip.sensor], waves = bands.map(([, wave]) => wave);
  const [low, high] = [Math.min(...waves) - 0.1, Math.max(...waves) + 0.1];
  $("bands").replaceChildren(...bands.map(([name], k) => {
    const row = document.createElement("div");
    row.className = "band";
    row.innerHTML = `<input type=checkbox checked aria-label="${name} given"><span>${name}</span>
      <input type=range min=${low} max=${high} step=0.005 value=${state.waves[k]} aria-label="Wavelength of ${name}">
      <output>${state.waves[k].toFixed(3)} µm</output>`;
    const [box, slider] = row.querySelectorAll("input");
    box.checked = state.bands[k];
    box.onchange = () => { state.bands[k] = box.checked; update(); };
    slider.oninput = () => { state.waves[k] = +slider.value; row.lastElementChild.textContent = `${state.waves[k].toFixed(3)} µm`; update(); };
    return row;
  }));
}

$("ratio").oninput = () => { state.ratio = $("ratio").value / 100; $("share").textContent = `${$("ratio").value} %`; hide(); update(); };
$("again").onclick = () => { state.seed++; hide(); update(); };
$("reset").onclick = () => choose(chip);
$("metadata").onchange = () => { state.metadata = $("metadata").checked; update(); };
$("decoded").onclick = () => {
  state.decoded = !state.decoded;
  $("decoded").setAttribute("aria-pressed", state.decoded);
  $("decoded").textContent = state.decoded ? "Show only hidden as decoded" : "Show all as decoded";
  draw();
};

function patchAt(event) {
  const box = event.target.getBoundingClientRect(), [h, w] = grid();
  const place = (value, size, count) => Math.min(Math.max(Math.floor(value / size * count), 0), count - 1);
  return place(event.clientY - box.top, box.height, h) * w + place(event.clientX - box.left, box.width, w);
}

for (const name of ["image", "similar"]) $(name).onclick = event => {
  if (!chip || !measured().includes(patchAt(event))) return;
  state.chosen = patchAt(event);
  similarity();
};

$("similar").onkeydown = event => {
  const [h, w] = grid(), row = Math.floor(state.chosen / w), column = state.chosen % w;
  const [y, x] = {ArrowUp: [row - 1, column], ArrowDown: [row + 1, column], ArrowLeft: [row, column - 1], ArrowRight: [row, column + 1]}[event.key] ?? [];
  if (event.key === "Enter") { state.hidden.delete(state.chosen) || state.hidden.add(state.chosen); update(); }
  if (y === undefined) return;
  event.preventDefault(); // no scrolling
  if (y >= 0 && y < h && x >= 0 && x < w && measured().includes(y * w + x)) { state.chosen = y * w + x; similarity(); }
};

let brush = null; // while dragging: true hides, false shows
$("visible").onpointerdown = event => { if (!chip) return; brush = !state.hidden.has(patchAt(event)); stroke(event); };
$("visible").onpointermove = event => brush !== null && stroke(event);
window.onpointerup = () => brush = null;
function stroke(event) {
  const patch = patchAt(event);
  if (state.hidden.has(patch) === brush) return;
  if (brush) state.hidden.add(patch); else state.hidden.delete(patch);
  update();
}

// ---- a file of one's own

let opened; // {bands, size, gsd, lat, lon}
async function open(file) {
  try {
    if (!window.GeoTIFF) await load(asScript(await unpack("geotiff.js")));
    const tif = await (await GeoTIFF.fromArrayBuffer(await file.arrayBuffer())).getImage();
    const W = Math.min(tif.getWidth(), MIDDLE), H = Math.min(tif.getHeight(), MIDDLE);
    const left = Math.floor((tif.getWidth() - W) / 2), top = Math.floor((tif.getHeight() - H) / 2);
    const bands = await tif.readRasters({window: [left, top, left + W, top + H]}), hole = tif.getGDALNoData();
    const keys = tif.getGeoKeys() ?? {}, [step] = keys.ProjectedCSTypeGeoKey ? tif.getResolution() : [];
    const values = [...bands].map(band => Float32Array.from(band, v => v === hole ? NaN : v));
    opened = {name: file.name, values, size: [H, W], gsd: step && Math.abs(step)};
    const fits = Object.keys(DATA.sensors).filter(name => DATA.sensors[name].bands.length === values.length);
    if (!fits.length) {
      const known = Object.entries(DATA.sensors).map(([name, {bands}]) => `${name} ${bands.length}`).join(", ");
      throw new Error(`it has ${values.length} bands; expected the bands of one sensor, in their order: ${known}`);
    }
    $("sensor").replaceChildren(...fits.map(name => new Option(name)));
    $("own").hidden = false;
    await readAs($("sensor").value);
  } catch (error) {
    say(`${file.name} cannot be read: ${error.message}.`, true);
  }
}

async function readAs(sensor) {
  const {size, values, gsd, name} = opened, native = new Float32Array(values.length * size[0] * size[1]);
  values.forEach((band, k) => native.set(band, k * band.length));
  const inDecibel = native.some(value => value < 0);
  const pixels = normalize(native, sensor, size[0] * size[1], inDecibel);
  await choose({sensor, size, pixels, gsd, time: [0, 0, 0, 0], latlon: [0, 0, 0, 0], where: "not read from files", number: -1});
  const middle = pixels.filter(Number.isFinite).sort()[Math.floor(pixels.length / 2)];
  if (Math.abs(middle) > 5) say(`${name}: its numbers are far from what ${sensor} has; another sensor, unit or scale?`, true);
}

$("sensor").onchange = () => readAs($("sensor").value);
$("file").onchange = () => $("file").files[0] && open($("file").files[0]);
window.ondragover = event => { event.preventDefault(); document.body.classList.add("over"); };
window.ondragleave = () => document.body.classList.remove("over");
window.ondrop = event => {
  event.preventDefault();
  document.body.classList.remove("over");
  if (event.dataTransfer.files[0]) open(event.dataTransfer.files[0]);
};

window.clay = {start: start().catch(error => { say(`The model could not start: ${error.message}`, true); throw error; }), state: () => ({chip, state, result, all})};
