/* ---- one's own photograph: the teachers run in this page (onnxruntime-web); it stays here ---- */

async function unpack(text) {  // base64 of gzip
  const packed = Uint8Array.from(atob(text), c => c.charCodeAt(0))
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))
  return new Uint8Array(await new Response(stream).arrayBuffer())
}
const runtime = () => once("runtime", async () => {
  const script = new Blob([await unpack(data.runtime.script)], { type: "text/javascript" })
  const address = URL.createObjectURL(script), ort = await import(address)
  URL.revokeObjectURL(address)
  ort.env.wasm.wasmBinary = await unpack(data.runtime.wasm)
  ort.env.wasm.numThreads = 1  // threads would need headers that a file doesn't have
  return ort
})
const session = t => once(`network of ${t.name}`, async () =>
  (await runtime()).InferenceSession.create(await unpack(t.own.network)))

/** What the browser makes of a file: RGBA upright, on white, its colours as they are stored. */
async function decode(file) {
  const bitmap = await createImageBitmap(file,
    { imageOrientation: "from-image", colorSpaceConversion: "none", premultiplyAlpha: "none" })
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height)
  const context = canvas.getContext("2d", { willReadFrequently: true })
  context.fillStyle = "#fff"
  context.fillRect(0, 0, canvas.width, canvas.height)
  context.drawImage(bitmap, 0, 0)
  return context.getImageData(0, 0, canvas.width, canvas.height)
}

/** An image as a picture that `draw` takes. */
async function toPicture({ pixels, width, height, channels }) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height })
  const rgba = new ImageData(width, height)
  for (let p = 0; p < width * height; p++)
    for (let c = 0; c < 4; c++)
      rgba.data[4 * p + c] = c > 2 ? 255 : pixels[p * channels + Math.min(c, channels - 1)]
  canvas.getContext("2d").putImageData(rgba, 0, 0)
  const picture = Object.assign(new Image(), { src: canvas.toDataURL() })
  await picture.decode()
  return picture
}

/** Unit rows: coordinates along the directions of the page's own features, then what these leave
    over. So products with the page's are theirs, and those of own patches are exact. */
function ownRows(t, values) {
  const rank = t.features.length, directions = bytes(t.own.directions, Float32Array)
  const width = directions.length / rank, rows = []
  for (let at = 0; at < values.length; at += width) {
    const row = values.slice(at, at + width), norm = Math.hypot(...row) || 1
    const rest = row.map(v => v / norm), along = new Float32Array(rank)
    rest.forEach((v, d) => along.forEach((_, r) => { along[r] += v * directions[d * rank + r] }))
    along.forEach((v, r) => rest.forEach((_, d) => { rest[d] -= v * directions[d * rank + r] }))
    rows.push(Float32Array.of(...along, ...rest))
  }
  return rows
}

/** A tensor (1, n, ...) as n arrays. */
function split({ data: values, dims }) {
  const size = values.length / dims[1]
  return Array.from({ length: dims[1] }, (_, i) => values.subarray(i * size, i * size + size))
}

/** What a teacher sees of an image with the right channels: an entry of its `images`. */
async function lookAt(t, image) {
  const seen = asSeen(image, t.own), { mean, std } = t.own, network = await session(t)
  const { Tensor } = await runtime()
  const x = normalise(seen, mean, std), shape = [1, mean.length, seen.height, seen.width]
  const found = await network.run({ images: new Tensor("float32", x, shape) })
  const [, layers, heads, ...grid] = found.layers.dims
  const maps = split({ data: found.layers.data, dims: [1, layers * heads] })
  return {
    grid, seen, matrix: split(found.matrix), rows: ownRows(t, found.patches.data),
    layers: Array.from({ length: layers }, (_, l) => maps.slice(l * heads, (l + 1) * heads)),
  }
}

const tell = text => { $("own-text").textContent = text }

/** Let every teacher look at a file; it becomes the last image of the page. */
async function takeFile(file) {
  tell(`${file.name}: the teacher is looking …`)
  await new Promise(done => setTimeout(done, 30))  // the line above is drawn first
  let rgba
  try {
    rgba = await decode(file)
  } catch {
    return tell(`${file.name} is no image that this browser can read: take a .jpg or .png`)
  }
  const start = performance.now(), entries = []
  try {
    for (const t of data.teachers) {
      const entry = await lookAt(t, toChannels(rgba, t.own.mean.length))
      entries.push({ ...entry, shown: await toPicture(entry.seen) })
    }
  } catch (error) {
    return tell(`${file.name}: the teacher can't run in this browser (${error.message})`)
  }
  entries.forEach((entry, i) => {
    data.teachers[i].images.push({ ...entry, picture: pictures.push(entry.shown) - 1 })
  })
  data.names.push(file.name)
  set({ image: data.names.length - 1, patch: null })
  requestAnimationFrame(() => { $("images").scrollLeft = $("images").scrollWidth })  // once drawn
  const seconds = ((performance.now() - start) / 1000).toFixed(1)
  tell(`${file.name}: looked at in ${seconds} s. It has not left this computer.`)
}

let queue = Promise.resolve()
function take(files) {
  for (const file of files) queue = queue.then(() => takeFile(file))
}
if (data.runtime) {
  $("own").hidden = false
  tell("or drop one anywhere. It stays on this computer.")
  $("file").onchange = event => { take([...event.target.files]); event.target.value = "" }
  const shade = on => document.body.classList.toggle("drop", on)
  addEventListener("dragover", event => { event.preventDefault(); shade(true) })
  addEventListener("dragleave", event => shade(event.relatedTarget !== null))
  addEventListener("drop", event => {
    event.preventDefault()
    shade(false)
    if (event.dataTransfer.files.length) take([...event.dataTransfer.files])
    else tell("That was no file: save the picture first, and drop the file.")
  })
}
