"use strict"
const data = JSON.parse(document.getElementById("data").textContent)
const $ = id => document.getElementById(id)
const pictures = data.pictures.map(uri => Object.assign(new Image(), { src: uri }))
// layer -1 is the last, head -1 the mean of the heads, keep 0 no mask; patch: an image and a place
// in it, as shares of its sides, since the grids of two teachers may differ
const state = { teacher: data.teachers.length - 1, image: 0, layer: -1, head: -1, keep: 0,
                patch: null }
const teacher = () => data.teachers[state.teacher]

/* ---- the data: base64 to arrays, at their first use ---- */

const cache = new Map()
function once(key, make) {
  if (!cache.has(key)) cache.set(key, make())
  return cache.get(key)
}
function bytes(text, Type) {
  return once(text, () => new Type(Uint8Array.from(atob(text), c => c.charCodeAt(0)).buffer))
}
function mean(maps) {
  return maps[0].map((_, p) => maps.reduce((sum, map) => sum + map[p], 0) / maps.length)
}
const sum = map => map.reduce((a, b) => a + b, 0)
const largest = map => map.reduce((a, b) => Math.max(a, b))
const quantile = (map, share) => Float32Array.from(map).sort()[Math.round(share * (map.length - 1))]
const pick = maps => state.head < 0 ? mean(maps) : maps[state.head]
const last = () => teacher().layers - 1
const layer = () => state.layer < 0 ? last() : Math.min(state.layer, last())

/** The CLS row over the patches (or the pooled similarity), for each head: list of Float32Array. */
function clsMaps(image, layer) {
  const item = teacher().images[image], n = item.grid[0] * item.grid[1], heads = teacher().heads
  if (item.layers) return item.layers[layer]  // one's own photograph, see explorer-own.js
  const all = bytes(item.maps, Uint8Array)
  return Array.from({ length: heads }, (_, head) => {
    const m = layer * heads + head
    return Float32Array.from(all.subarray(m * n, m * n + n), v => item.low[m] + item.step[m] * v)
  })
}

/** The last layer's row of one patch over the patches, for each head; null where there is none. */
function patchMaps(image, patch) {
  const item = teacher().images[image], { rank, tokens } = item
  const n = item.grid[0] * item.grid[1]
  if (item.matrix) return item.matrix.map(head => {
    const all = Math.sqrt(head.length), end = (all - n + patch + 1) * all
    return head.subarray(end - n, end)
  })
  if (!item.queries) return null
  const queries = bytes(item.queries, Int8Array), keys = bytes(item.keys, Int8Array)
  return Array.from({ length: item.scale.length / rank }, (_, head) => {
    const scores = new Float32Array(tokens)
    for (let t = 0; t < tokens; t++)
      for (let r = 0; r < rank; r++)
        scores[t] += queries[(head * n + patch) * rank + r] * keys[(head * tokens + t) * rank + r] *
                     item.scale[head * rank + r]
    const top = largest(scores), odds = scores.map(s => Math.exp(s - top)), all = sum(odds)
    return odds.subarray(tokens - n).map(o => o / all)  // CLS and registers hold the rest of 1
  })
}

/** Unit features of an image's patches: list of Float32Array. */
function features(image) {
  const { features: text, rows } = teacher().images[image], scale = teacher().features
  if (rows) return rows
  return once("unit " + text, () => {
    const values = bytes(text, Int8Array), out = []
    for (let at = 0; at < values.length; at += scale.length) {
      const row = Float32Array.from(values.subarray(at, at + scale.length), (v, r) => v * scale[r])
      const norm = Math.hypot(...row) || 1
      out.push(row.map(v => v / norm))
    }
    return out
  })
}
function similarity(image, query) {
  const product = row => row.reduce((sum, v, r) => sum + v * (query[r] ?? 0), 0)  // own are longer
  return Float32Array.from(features(image), product)
}

/** The smallest set of patches that holds the share `keep` of the mass, as attention.mass_mask. */
function massMask(map, keep) {
  const mass = map.map(v => Math.max(v, 0)), total = sum(mass)
  const mask = new Uint8Array(map.length)
  let before = 0
  for (const p of [...mass.keys()].sort((a, b) => mass[b] - mass[a])) {
    if (mass[p] <= 0 || before >= keep * (1 - 1e-6) * total) break
    mask[p] = 1
    before += mass[p]
  }
  return mask
}

/** Which patch of an image's grid the place of state.patch is in. */
function patchAt(image) {
  const [h, w] = teacher().images[image].grid, { x, y } = state.patch
  return Math.floor(y * h) * w + Math.floor(x * w)
}
