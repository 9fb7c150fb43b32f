/** What one run of the campaign does: made from a seed and a number alone, so that it can be done again. */

const MiB = 1024 * 1024

/** A stream's life, told in `acts.ts`. */
export type Life =
  'stream' | 'boot' | 'units' | 'stop' | 'resume' | 'partial' | 'offline' | 'start-offline' | 'continue'

/**
 * Who is killed: the process that has the images open (QEMU or the storage daemon), our own process (SIGKILL, or SIGTERM,
 * which it takes as the order to close), both at once, or the server that the base comes from.
 */
export type Victim = 'qemu' | 'us' | 'term' | 'both' | 'server'

/** When: at a step of our own process (see `steps.ts`), or so many ms after the stream was asked for. */
export type Moment = { by: 'step'; step: number } | { by: 'time'; ms: number }

export interface Plan {
  seed: number
  run: number
  life: Life
  engine: 'job' | 'pull'
  base: 'local' | 'nbd'
  /** who writes to the disk meanwhile: nobody, requests through the guest's device, a real Linux */
  guest: 'none' | 'writer' | 'linux'
  victim: Victim
  moment: Moment
  /** bytes */
  size: number
  /** bytes/s */
  bandwidth: number
  /** the definition names the whole backing chain, instead of leaving it to the image */
  named: boolean
  /** images are locked, or locked and labelled (QEMU is another user then) */
  access: 'none' | 'locks' | 'labels'
  /** how the stream is brought to its end afterwards, where the domain is not running any more */
  afterwards: 'offline' | 'start'
}

/** Numbers in [0, 1) from a seed: mulberry32. */
export function random(seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let x = Math.imul(state ^ (state >>> 15), state | 1)
    x = (x + Math.imul(x ^ (x >>> 7), x | 61)) ^ x
    return ((x ^ (x >>> 14)) >>> 0) / 2 ** 32
  }
}

/** one of `values`, each as often as it stands there */
const oneOf = <T>(next: () => number, values: readonly T[]): T => values[Math.floor(next() * values.length)] as T

const LIVES: readonly Life[] = [
  ...['stream', 'stream', 'boot', 'units', 'stop', 'resume'],
  ...['partial', 'offline', 'start-offline', 'continue'],
] as Life[]
const LINUX_LIVES: readonly Life[] = ['stream', 'stream', 'units', 'stop', 'resume', 'resume']
/** at 4 of 13 runs or more a real guest is at work */
const LINUX = 0.31

/** Lives that take some seconds at their bandwidth and then their last steps. */
const SECONDS = 1.5
const LONGEST = 2
const MOST_STEPS = 62

export interface Choice {
  /** may be left out where the machine lacks what it needs */
  linux: boolean
  labels: boolean
}

/** Run number `run` of the campaign of `seed`. */
export function makePlan(seed: number, run: number, { linux, labels }: Choice): Plan {
  const next = random(Math.imul(seed, 0x9e3779b1) ^ Math.imul(run + 1, 0x85ebca6b))
  const real = next() < LINUX && linux
  const life = oneOf(next, real ? LINUX_LIVES : LIVES)
  const base = life === 'partial' ? 'local' : oneOf(next, ['local', 'nbd'] as const)
  const victims: readonly Victim[] = ['qemu', 'qemu', 'qemu', 'us', 'us', 'us', 'both', 'term', 'server']
  let victim = oneOf(next, victims)
  if (victim === 'server' && base === 'local') victim = 'qemu'
  const size = oneOf(next, [64, 64, 96, 128]) * MiB
  // a step is easily hit in the few moments that count, a time in the long middle
  const step = { by: 'step', step: 1 + Math.floor(next() * MOST_STEPS) } as const
  const moment: Moment = next() < 0.6 ? step : { by: 'time', ms: Math.floor(next() * LONGEST * 1000) }
  const writes = victim !== 'server' && life !== 'offline' && next() < 0.7
  return {
    seed,
    run,
    life,
    engine: oneOf(next, base === 'nbd' ? (['pull', 'pull', 'job'] as const) : (['job', 'job', 'pull'] as const)),
    base,
    guest: real ? 'linux' : writes ? 'writer' : 'none',
    victim,
    moment,
    size,
    bandwidth: Math.floor(size / SECONDS),
    named: next() < 0.5,
    access: oneOf(
      next,
      labels && !real ? (['none', 'none', 'locks', 'labels'] as const) : (['none', 'locks'] as const),
    ),
    afterwards: next() < 0.4 ? 'offline' : 'start',
  }
}

export function describePlan({ run, life, engine, base, guest, victim, moment, size, named, access }: Plan): string {
  const when = moment.by === 'step' ? `at step ${moment.step}` : `after ${moment.ms} ms`
  const words = [life, engine, base, guest === 'none' ? '' : guest, named ? 'named chain' : '', access]
  const what = words.filter((word) => word !== '' && word !== 'none').join(', ')
  return `${String(run).padStart(3)} ${victim} ${when}: ${what}, ${size / MiB} MiB`
}
