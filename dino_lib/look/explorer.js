/* ---- drawing ---- */

const INFERNO = [[0, 0, 4], [31, 12, 72], [85, 15, 109], [136, 34, 106], [186, 54, 85],
                 [227, 89, 51], [249, 140, 10], [249, 201, 50], [252, 255, 164]]
function inferno(t) {
  const at = Math.min(Math.max(t, 0), 1) * 8, i = Math.min(Math.floor(at), 7)
  return INFERNO[i].map((v, c) => v + (at - i) * (INFERNO[i + 1][c] - v))
}

/** The value drawn brightest: no largest one, or a single patch would darken all the others; of
    attention at least 3 times the mean, so that a map that is all but even looks even. */
function brightest(map) {
  const isAttention = teacher().map === "CLS attention"
  return Math.max(quantile(map, 0.98), isAttention ? 3 * sum(map) / map.length : 0) || largest(map)
}

/** An image with a map over it, or a mask's outline, or as it is; mark: outline the chosen patch. */
function draw(canvas, image, side, options = {}) {
  const { map = null, low = 0, mask = null, mark = false } = options
  const item = teacher().images[image], [h, w] = item.grid, picture = pictures[item.picture]
  const cell = Math.max(1, Math.round(side / Math.max(h, w))), context = canvas.getContext("2d")
  canvas.width = w * cell
  canvas.height = h * cell
  context.imageSmoothingEnabled = picture.naturalWidth > 128
  context.drawImage(picture, 0, 0, canvas.width, canvas.height)
  if (map) {
    const high = options.high ?? brightest(map)
    if (!mask) {  // a grey picture, so that all colours are the map's
      context.globalCompositeOperation = "saturation"
      context.fillStyle = "#000"
      context.fillRect(0, 0, canvas.width, canvas.height)
      context.globalCompositeOperation = "source-over"
    }
    context.fillStyle = `rgb(0 0 0 / ${mask ? 60 : 40}%)`
    if (!mask) context.fillRect(0, 0, canvas.width, canvas.height)
    map.forEach((value, p) => {
      const t = (value - low) / (high - low || 1)
      const alpha = 15 + 60 * Math.min(Math.max(t, 0), 1)  // the picture shows through everywhere
      if (!mask) context.fillStyle = `rgb(${inferno(t).map(Math.round).join(" ")} / ${alpha}%)`
      if (!mask?.[p]) context.fillRect(p % w * cell, Math.floor(p / w) * cell, cell, cell)
    })
  }
  if (mask) outline(context, mask, h, w, cell, "#ffb020", Math.max(1, side / 200))
  const chosen = mark && Uint8Array.from({ length: h * w }, (_, p) => p === patchAt(image))
  if (mark) outline(context, chosen, h, w, cell, "#3df", Math.max(1.5, side / 150))
}
function outline(context, mask, h, w, cell, colour, width) {
  const at = (r, c) => r >= 0 && r < h && c >= 0 && c < w && mask[r * w + c]
  context.beginPath()
  for (let r = 0; r <= h; r++)
    for (let c = 0; c <= w; c++) {
      // the edge above this patch, and that on its left
      for (const [below, right] of [[0, 1], [1, 0]]) {
        if (!at(r, c) === !at(r - right, c - below)) continue
        context.moveTo(c * cell, r * cell)
        context.lineTo((c + right) * cell, (r + below) * cell)
      }
    }
  for (const [style, size] of [["#000a", 2 * width], [colour, width]]) {
    context.strokeStyle = style
    context.lineWidth = size
    context.stroke()
  }
}

function say(id, title, text) {
  const line = document.createElement("span")
  line.textContent = text
  $(id).replaceChildren(title, line)
}
const percent = share => `${(100 * share).toPrecision(3)}%`
const headName = head => head < 0 ? "mean of heads" : `head ${head}`

/** The maps of a strip's button, one below the other, and its text; buttons are made once. */
function button(strip, i, chosen, text, maps, choose) {
  let element = $(strip).children[i]
  if (!element) {
    element = $(strip).appendChild(document.createElement("button"))
    element.append(document.createElement("div"))
  }
  element.onclick = choose
  element.setAttribute("aria-pressed", chosen)
  const label = element.lastChild
  label.textContent = element.title = text
  while (element.children.length - 1 > maps.length) element.firstChild.remove()
  while (element.children.length - 1 < maps.length) label.before(document.createElement("canvas"))
  maps.forEach(([image, options], j) => draw(element.children[j], image, 168, options))
  return element
}
function trim(strip, count) {
  while ($(strip).children.length > count) $(strip).lastChild.remove()
}

function render() {
  const { heads, layers, images, map: kind } = teacher(), { image, keep, patch } = state
  state.head = Math.min(state.head, heads - 1)
  const isCls = kind === "CLS attention"
  const masked = map => ({ map, mask: keep ? massMask(map, keep) : null })
  const n = images[image].grid[0] * images[image].grid[1]

  const maps = clsMaps(image, layer()), seen = pick(maps)
  const shown = masked(seen), mark = patch?.image === image
  draw($("seen"), image, 640, { ...shown, mark })
  const ending = layer() === last() ? " (the last)" : ""
  const which = `layer ${layer()}${ending}, ${headName(state.head)}`
  const what = isCls ? which : "cosine with the mean feature"
  say("seen-text", isCls ? "What CLS attends to" : "Pooled similarity (no CLS attention)", keep
    ? `${what}: ${sum(shown.mask)} of ${n} patches hold ${Math.round(100 * keep)}% of the mass`
    : isCls ? `${what}: ${percent(sum(seen))} on patches, the largest ${percent(largest(seen))}`
            : `${what}: where the map agrees with the feature pooled from it`)

  let rows = null, like = null, low = 0
  if (patch) {
    const p = patchAt(patch.image), query = features(patch.image)[p]
    const [, w] = images[patch.image].grid
    rows = patchMaps(patch.image, p)
    like = images.map((_, i) => similarity(i, query))
    low = quantile(like.flatMap(map => [...map]), 0.5)  // the more similar half stands out
    draw($("patch"), patch.image, 640, { map: rows && pick(rows), mark: true })
    const off = images[patch.image].off
    say("patch-text", rows ? "What this patch attends to" : "Patch attention: none", rows
      ? `last layer, ${headName(state.head)}; row ${Math.floor(p / w)}, column ${p % w}` +
        (off > 0.02 ? `; approximate: ${percent(off)} of the mass out of place` : "")
      : "no attention between the patches of this model")
    draw($("like"), image, 640, { map: like[image], low, high: 1, mark })
    say("like-text", "What resembles this patch",
      `cosine of features: 1 is bright, ${low.toFixed(2)} (the median of all images) and less dark`)
  } else {
    draw($("patch"), image, 640)
    draw($("like"), image, 640)
    say("patch-text", "What a patch attends to", "click or tap a patch of any picture")
    say("like-text", "What resembles it", "in this image, and in all images below")
  }

  data.teachers.forEach((t, i) => {
    const b = $("teachers").children[i] ??
      $("teachers").appendChild(document.createElement("button"))
    b.textContent = t.name
    b.setAttribute("aria-pressed", i === state.teacher)
    b.onclick = () => set({ teacher: i })
  })
  $("images-text").textContent =
    like ? "Images: what resembles the patch" : "Images: the layer and head chosen below"
  images.forEach((_, i) => button("images", i, i === image, data.names[i],
    [[i, like ? { map: like[i], low, high: 1, mark: i === patch.image }
              : masked(pick(clsMaps(i, layer())))]],
    () => set({ image: i })))
  $("heads-text").textContent = isCls
    ? `Heads of layer ${layer()}: CLS${rows ? " above, the patch in the last layer below" : ""}`
    : "One map, no heads"
  const choices = heads > 1 ? [-1, ...maps.keys()] : [0]
  choices.forEach((head, i) => {
    const of = list => head < 0 ? mean(list) : list[head]
    const stack = [[image, masked(of(maps))]]
    if (rows && rows.length === heads) stack.push([patch.image, { map: of(rows), mark: true }])
    const text = heads < 2 ? kind : head < 0 ? "mean" : headName(head)
    button("heads", i, head === state.head || heads === 1, text, stack, () => set({ head }))
  })
  trim("heads", choices.length)
  $("layers-text").parentElement.hidden = layers === 1
  $("layers-text").textContent = `Layers: CLS, ${headName(state.head)}`
  for (let l = 0; l < layers; l++)
    button("layers", l, l === layer(), `layer ${l}`, [[image, masked(pick(clsMaps(image, l)))]],
      () => set({ layer: l }))
  trim("layers", layers)
  $("keep").value = keep
  $("kept").textContent = keep ? keep.toFixed(2) : "off"
}

let waiting = false
function set(change) {
  Object.assign(state, change)
  if (!waiting) requestAnimationFrame(() => { waiting = false; render() })
  waiting = true
}

/* ---- pointer and keys ---- */

for (const id of ["seen", "patch", "like"])
  $(id).onclick = event => {
    const box = $(id).getBoundingClientRect()
    const inside = share => Math.min(Math.max(share, 0), 1 - 1e-9)
    const x = inside((event.clientX - box.left) / box.width)
    const y = inside((event.clientY - box.top) / box.height)
    set({ patch: { image: id === "patch" && state.patch ? state.patch.image : state.image, x, y } })
  }
$("keep").oninput = event => set({ keep: +event.target.value })

function move(rows, columns) {
  const image = state.patch?.image ?? state.image, [h, w] = teacher().images[image].grid
  const from = state.patch ?? { x: 0.5, y: 0.5 }
  const within = (at, n) => (Math.min(Math.max(at, 0), n - 1) + 0.5) / n
  const x = within(Math.floor(from.x * w) + columns, w)
  const y = within(Math.floor(from.y * h) + rows, h)
  set({ patch: { image, x, y } })
}
const turn = (i, step, count) => (i + step + count) % count
const ARROWS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }
addEventListener("keydown", event => {
  if (event.ctrlKey || event.altKey || event.metaKey) return
  const step = event.shiftKey ? -1 : 1, arrow = ARROWS[event.key], { heads, layers } = teacher()
  if (arrow && event.target === $("keep") && !event.shiftKey) return  // the slider's own
  if (arrow && event.shiftKey) move(...arrow)
  else if (arrow?.[1]) set({ image: turn(state.image, arrow[1], data.names.length) })
  else if (arrow) set({ head: turn(state.head + 1, arrow[0], heads + 1) - 1 })
  else if (event.key === "+" || event.key === "-") {
    const keep = state.keep + (event.key === "+" ? 0.05 : -0.05)
    set({ keep: Math.round(100 * Math.min(Math.max(keep, 0), 1)) / 100 })
  } else if (event.key === "Escape") set({ patch: null })
  else if (/^l$/i.test(event.key)) set({ layer: turn(layer(), step, layers) })
  else if (/^t$/i.test(event.key)) set({ teacher: turn(state.teacher, step, data.teachers.length) })
  else if (/^m$/i.test(event.key)) set({ keep: state.keep ? 0 : 0.6 })
  else if (/^d$/i.test(event.key)) $("theme").click()
  else return
  event.preventDefault()
})

const dark = matchMedia("(prefers-color-scheme: dark)")
function theme(name) { document.documentElement.dataset.theme = name }
dark.onchange = () => theme(dark.matches ? "dark" : "light")
$("theme").onclick = () =>
  theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark")
dark.onchange()
Promise.all(pictures.map(picture => picture.decode())).then(render)
