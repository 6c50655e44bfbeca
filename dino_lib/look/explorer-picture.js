/* ---- a picture as dino_lib's networks see it: data/transforms.py, pixel for pixel ---- */

/** Python's round: a half goes to the even number. */
function roundEven(x) {
  const up = Math.round(x)
  return up - x === 0.5 && up % 2 ? up - 1 : up
}

/** PIL's weights, in whole numbers of 22 bits, of the pixels from .. to of n for each of nOut:
    list of [first pixel, weights]. The cubic kernel has a = -0.5, stretched when it shrinks. */
function cubicWeights(n, from, to, nOut) {
  const cubic = t =>
    t < 1 ? (1.5 * t - 2.5) * t * t + 1 : t < 2 ? ((-0.5 * t + 2.5) * t - 4) * t + 2 : 0
  from = Math.fround(from)  // PIL keeps a box in single precision
  const step = Math.fround(Math.fround(to) - from) / nOut, width = Math.max(step, 1)
  return Array.from({ length: nOut }, (_, i) => {
    const middle = from + (i + 0.5) * step
    const first = Math.max(0, Math.trunc(middle - 2 * width + 0.5))
    const end = Math.min(n, Math.trunc(middle + 2 * width + 0.5))
    const weights = Array.from({ length: end - first },
      (_, j) => cubic(Math.abs((first + j - middle + 0.5) * (1 / width))))
    const all = weights.reduce((a, b) => a + b, 0)
    const whole = w => Math.trunc(w / all * 2 ** 22 + (w / all < 0 ? -0.5 : 0.5))
    return [first, weights.map(whole)]
  })
}

/** An image, { pixels (height * width * channels) of 8 bits, width, height, channels }, resampled
    from left to right, or from top to bottom. */
function resample(image, weights, isDown) {
  const { pixels, width, height, channels } = image
  const out = { ...image, [isDown ? "height" : "width"]: weights.length }
  out.pixels = new Uint8Array(out.height * out.width * channels)
  const stride = (isDown ? width : 1) * channels
  let i = 0
  for (let y = 0; y < out.height; y++)
    for (let x = 0; x < out.width; x++) {
      const [first, ws] = weights[isDown ? y : x]
      const from = isDown ? first * width + x : y * width + first
      for (let c = 0; c < channels; c++) {
        let sum = 0, at = from * channels + c
        for (const w of ws) { sum += w * pixels[at]; at += stride }
        out.pixels[i++] = Math.min(Math.max(Math.floor(sum / 2 ** 22 + 0.5), 0), 255)
      }
    }
  return out
}

/** A box of an image at wide x high pixels, as PIL's resize, rounded after each of its two passes.
    From version 13 on (tallFirst) PIL begins with the rows of what is much too tall. */
function resize(image, [left, top, right, bottom], wide, high, tallFirst) {
  const { width, height } = image
  const across = picture => resample(picture, cubicWeights(width, left, right, wide), false)
  const down = picture => resample(picture, cubicWeights(height, top, bottom, high), true)
  const isTall = height > high && height - high > 2 * (width - wide)
  return tallFirst && isTall ? across(down(image)) : down(across(image))
}

/** A canvas's RGBA as RGB, or as grey by PIL's weights. */
function toChannels({ data, width, height }, channels) {
  const pixels = new Uint8Array(width * height * channels)
  for (let p = 0; p < width * height; p++) {
    const [r, g, b] = [data[4 * p], data[4 * p + 1], data[4 * p + 2]]
    if (channels === 3) pixels.set([r, g, b], 3 * p)
    else pixels[p] = (19595 * r + 38470 * g + 7471 * b + 32768) >> 16
  }
  return { pixels, width, height, channels }
}

/** What a teacher sees of an image: its middle square, or (size) all of it at whole patches. */
function asSeen(image, { side, size, patch, tallFirst }) {
  const { width, height } = image
  if (size === null) {
    const short = Math.min(width, height)
    const left = (width - short) * 0.5, top = (height - short) * 0.5
    return resize(image, [left, top, left + short, top + short], side, side, tallFirst)
  }
  const ratio = size / Math.sqrt(width * height)
  const [high, wide] = [[height, patch[0]], [width, patch[1]]]
    .map(([n, p]) => Math.max(1, roundEven(n * ratio / p)) * p)
  return resize(image, [0, 0, width, height], wide, high, tallFirst)
}

/** (height * width * channels) of 8 bits -> (channels, height, width), normalised. */
function normalise({ pixels, channels }, mean, std) {
  const n = pixels.length / channels
  return Float32Array.from(pixels, (_, i) => {
    const c = Math.floor(i / n)
    return (pixels[i % n * channels + c] / 255 - mean[c]) / std[c]
  })
}
