/**
 * Does an accelerator work? Told by running a small guest on it, since a /dev/kvm that opens says little: under some nested
 * hypervisors it creates guests that crawl, or die at the first unusual instruction.
 */
import { spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { constants } from 'node:fs'
import { access, mkdir, mkdtemp, readFile, rename, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { wordsOf } from '../error.js'
import { kvmProbeProgram } from './kvm-probe.gen.js'

export interface AccelerationProbe {
  works: boolean
  /** why it does not, as a sentence; '' when it works */
  reason: string
  /** it was given up: it may work on a host with less to do */
  timedOut?: boolean
}
export interface KvmProbe {
  kvm: boolean
  /** why not, as a sentence; '' when it works */
  reason: string
}

/** ms; on healthy KVM the program takes some 100, most of it QEMU's own start */
const LIMIT = 5000
/** isa-debug-exit makes `value << 1 | 1` of the 0x2a that the program reports */
const EXIT_WORKS = 0x55
const ROM_SIZE = 65536

/** Runs the program on an accelerator of a QEMU binary. Never rejects for what is wrong with the accelerator. */
export async function probeAcceleration(
  binary: string,
  accel: 'kvm' | 'tcg',
  limit = LIMIT,
): Promise<AccelerationProbe> {
  const dir = await mkdtemp(join(tmpdir(), 'virstream-probe-'))
  try {
    const rom = join(dir, 'rom')
    const program = Buffer.from(kvmProbeProgram, 'base64')
    await writeFile(rom, Buffer.concat([Buffer.alloc(ROM_SIZE - program.length), program]))
    return await runProgram(binary, accel, rom, limit)
  } finally {
    await rm(dir, { recursive: true, force: true })
  }
}

function runProgram(binary: string, accel: string, rom: string, limit: number): Promise<AccelerationProbe> {
  const args = [
    ...['-machine', 'pc', '-accel', accel, '-cpu', 'qemu64', '-m', '16', '-bios', rom],
    ...['-no-user-config', '-nodefaults', '-display', 'none', '-no-reboot'],
    ...['-device', 'isa-debug-exit,iobase=0xf4,iosize=4'],
  ]
  const child = spawn(binary, args, {
    stdio: ['ignore', 'ignore', 'pipe'],
    env: { LC_ALL: 'C', PATH: '/usr/bin:/bin' },
  })
  return new Promise((resolve) => {
    let words = ''
    const end = (reason: string, timedOut = false): void => {
      clearTimeout(timer)
      child.kill('SIGKILL')
      resolve({ works: reason === '', reason, ...(timedOut && { timedOut }) })
    }
    const late = `a small guest did not finish its work on ${accel} within ${limit / 1000} s`
    const timer = setTimeout(() => end(late, true), limit)
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      words = (words + text).slice(0, 4096)
      // QEMU stops the guest then, and stays
      if (/KVM internal error[\s\S]*?RAX=/.test(words)) end(`a small guest died on ${accel}: ${internalError(words)}`)
    })
    child.on('error', (error) => end(`'${binary}' cannot be run: ${error.message}`))
    child.on('close', (code) =>
      end(code === EXIT_WORKS ? '' : `a small guest does not run on ${accel}: ${lastWords(words, code)}`),
    )
  })
}

function internalError(words: string): string {
  const kind = /^(emulation failure|.*exit.*)$/im.exec(words)?.[1]
  return kind === undefined ? 'KVM internal error' : `KVM internal error, ${kind}`
}

function lastWords(words: string, code: number | null): string {
  const line = words.split('\n').find((text) => text.trim() !== '' && !text.includes('warning:'))
  return line?.trim() ?? (code === 3 ? 'it computed wrong' : `QEMU ended with status ${code ?? 'unknown'}`)
}

// --- what is remembered ----------------------------------------------------------------------------------------

interface Remembered extends KvmProbe {
  key: string
}

/** Does KVM work with this binary? The answer is kept in `cacheDir` until the host reboots or the binary changes. */
export async function probeKvm(binary: string, cacheDir: string): Promise<KvmProbe> {
  try {
    await access('/dev/kvm', constants.R_OK | constants.W_OK)
  } catch (error) {
    return { kvm: false, reason: `/dev/kvm cannot be used: ${wordsOf(error)}` } // quick to ask again
  }
  const key = await probeKey(binary)
  const file = join(cacheDir, `kvm-${createHash('sha256').update(binary).digest('hex').slice(0, 16)}.json`)
  const known = await readRemembered(file)
  if (known?.key === key) return { kvm: known.kvm, reason: known.reason }
  const { works, reason, timedOut } = await probeAcceleration(binary, 'kvm')
  if (timedOut === true) return { kvm: works, reason }
  await mkdir(cacheDir, { recursive: true, mode: 0o700 })
  const temporary = `${file}.${process.pid}`
  await writeFile(temporary, JSON.stringify({ key, kvm: works, reason } satisfies Remembered), { mode: 0o600 })
  await rename(temporary, file)
  return { kvm: works, reason }
}

async function probeKey(binary: string): Promise<string> {
  const [bootId, info] = await Promise.all([
    readFile('/proc/sys/kernel/random/boot_id', 'utf8').catch(() => ''),
    stat(binary).catch(() => undefined),
  ])
  return [binary, info?.mtimeMs, info?.size, bootId.trim(), kvmProbeProgram.length].join('|')
}

async function readRemembered(file: string): Promise<Remembered | undefined> {
  try {
    return JSON.parse(await readFile(file, 'utf8')) as Remembered
  } catch {
    return undefined // absent or cut off: the probe can run again
  }
}
