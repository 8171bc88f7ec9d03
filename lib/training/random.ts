/**
 * A seeded generator of pseudo-random numbers for everything that is decided outside the device, such as the order of samples:
 * xoshiro128** (Blackman and Vigna 2021), its state filled by splitmix32 from the given numbers. Equal on every machine.
 */
export class Random {
  readonly #state = new Uint32Array(4)

  /** @param keys - integers, such as a seed and an epoch; every one of them counts, up to 53 bits */
  constructor(...keys: readonly number[]) {
    let hash = 0x9e3779b9
    for (const key of keys) {
      for (const word of [key >>> 0, Math.floor(Math.abs(key) / 2 ** 32) >>> 0]) hash = mix((hash ^ word) + 0x9e3779b9)
    }
    for (let i = 0; i < 4; i++) {
      hash = (hash + 0x9e3779b9) >>> 0
      this.#state[i] = mix(hash)
    }
  }

  /** 32 random bits, as an unsigned integer. */
  uint32(): number {
    const s = this.#state
    const result = Math.imul(rotate(Math.imul(s[1]!, 5), 7), 9) >>> 0
    const t = s[1]! << 9
    s[2]! ^= s[0]!
    s[3]! ^= s[1]!
    s[1]! ^= s[2]!
    s[0]! ^= s[3]!
    s[2]! ^= t
    s[3] = rotate(s[3]!, 11)
    return result
  }

  /** An integer in [0, below), without bias (rejection). */
  integer(below: number): number {
    const limit = 2 ** 32 - (2 ** 32 % below)
    for (;;) {
      const bits = this.uint32()
      if (bits < limit) return bits % below
    }
  }

  /** Puts the elements in random order, in place (Fisher and Yates), and returns them. */
  shuffle<T extends { length: number; [index: number]: unknown }>(elements: T): T {
    for (let i = elements.length - 1; i > 0; i--) {
      const j = this.integer(i + 1)
      const held = elements[i]
      elements[i] = elements[j]
      elements[j] = held
    }
    return elements
  }
}

const rotate = (x: number, by: number) => (x << by) | (x >>> (32 - by))

/** The finalizer of MurmurHash3. */
function mix(x: number): number {
  let h = x >>> 0
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b)
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35)
  return (h ^ (h >>> 16)) >>> 0
}
