import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { chmodSync, copyFileSync, mkdirSync, writeFileSync } from 'node:fs'
import { connect } from 'node:net'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'
import type { DomainDef, StorageSource } from '../../src/conf/domain-def.js'
import { native } from '../../src/native.js'
import type { BlockdevOptions } from '../../src/machine/blockdev.js'
import { QemuCapabilities } from '../../src/machine/capabilities.js'
import { ioThrottleArguments } from '../../src/machine/command-disk.js'
import { buildCommand, commandEnvironment } from '../../src/machine/command.js'
import { QmpSchema } from '../support/qmp-schema.js'
import { QmpClient } from '../../src/qmp/client.js'
import { run } from '../../src/util/run.js'
import { emptyImage, patternImage, temporaryFolder } from '../support/images.js'
import { startQemuNbd } from '../support/nbd-server.js'
import { requires } from '../support/requires.js'
import { goldenDefinition, goldenNames } from './command-golden.js'
import { emulator } from './command-qemu.js'

const MiB = 1024 * 1024

for (const name of goldenNames) {
  test(`QEMU starts with the command line of '${name}' and all its block nodes fit its schema`, async (t) => {
    if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img', 'program:qemu-nbd')) return
    if (name === 'uefi' && !requires(t, 'file:/usr/share/OVMF/OVMF_VARS_4M.fd')) return
    const folder = await temporaryFolder(t)
    const caps = await QemuCapabilities.load(emulator, { cacheDir: join(folder, 'cache') })
    const def = goldenDefinition(name, caps.definition, folder)
    await makeFiles(t, def, folder)
    const runDir = join(folder, 'run')
    mkdirSync(runDir, { mode: 0o700 })
    const vncPort = 6900 + Math.floor(Math.random() * 1000)
    const argv = buildCommand(def, { caps, accel: 'tcg', monitorFd: 3, runDir, vncPort })
    checkNodes(argv, caps)
    await startAndQuit(t, argv, def, folder)
  })
}

/** Every -blockdev is what blockdev-add takes. */
function checkNodes(argv: string[], caps: QemuCapabilities): void {
  const schema = new QmpSchema(caps.schema)
  for (const text of argv.filter((_, at) => argv[at - 1] === '-blockdev')) {
    assert.deepEqual(schema.checkCommand('blockdev-add', JSON.parse(text) as BlockdevOptions), [], text)
  }
}

async function startAndQuit(t: TestContext, argv: string[], def: DomainDef, folder: string): Promise<void> {
  const path = join(folder, 'monitor.sock')
  const listener = native.listenUnix(path, 0o600, 1)
  const env = { ...process.env, ...commandEnvironment(def) }
  const child = spawn(emulator, argv, { stdio: ['ignore', 'ignore', 'pipe', listener], env })
  t.after(() => child.kill('SIGKILL'))
  native.close(listener)
  let words = ''
  child.stderr?.setEncoding('utf8').on('data', (text: string) => (words += text))
  try {
    const client = await QmpClient.connect(connect(path), { timeout: 60_000 })
    const status = await client.execute('query-status', undefined, { timeout: 10_000 })
    assert.deepEqual(status, { singlestep: false, running: false, status: 'prelaunch' })
    await throttleDisks(client, def)
    const ended = once(child, 'exit')
    await client.execute('quit', undefined, { timeout: 10_000 })
    assert.deepEqual(await ended, [0, null])
  } catch (error) {
    throw new Error(`${String(error)}; QEMU said: ${words}`, { cause: error })
  }
}

/** Each disk that has a medium takes limits. */
async function throttleDisks(client: QmpClient, def: DomainDef): Promise<void> {
  const disks = def.disks.filter((disk) => disk.source !== undefined)
  for (const disk of disks) {
    const args = ioThrottleArguments({
      ...disk,
      iotune: { total_bytes_sec: MiB, write_iops_sec: 5, write_iops_sec_max: 7 },
    })
    await client.execute('block_set_io_throttle', args, { timeout: 10_000 })
  }
  const blocks = (await client.execute('query-block', undefined, { timeout: 10_000 })) as BlockDevice[]
  const limited = blocks.filter(({ inserted }) => inserted?.bps === MiB && inserted.iops_wr_max === 7)
  assert.equal(limited.length, disks.length)
}

interface BlockDevice {
  inserted?: { bps: number; iops_wr_max?: number }
}

// --- the files that the definitions name -----------------------------------------------------------------------

async function makeFiles(t: TestContext, def: DomainDef, folder: string): Promise<void> {
  const base = await patternImage(folder, MiB)
  await startQemuNbd(t, { image: base.path, format: 'raw', export: 'base', socket: join(folder, 'nbd.sock') })
  for (const disk of def.disks) if (disk.source) await makeImage(disk.source)
  if (def.os.nvram?.path !== undefined) {
    copyFileSync('/usr/share/OVMF/OVMF_VARS_4M.fd', def.os.nvram.path)
    chmodSync(def.os.nvram.path, 0o600)
  }
  if (def.os.kernel !== undefined) writeFileSync(def.os.kernel, linuxImage())
  if (def.os.initrd !== undefined) writeFileSync(def.os.initrd, 'no archive')
  for (const { source } of def.channels) {
    if (source.type === 'pipe') await run('mkfifo', [`${source.path}.in`, `${source.path}.out`])
  }
}

async function makeImage(source: StorageSource): Promise<void> {
  const { backingStore } = source
  if (backingStore) await makeImage(backingStore)
  if (source.type !== 'file') return
  const [folder, name] = [join(source.path, '..'), source.path.slice(source.path.lastIndexOf('/') + 1)]
  const size = name.startsWith('floppy') ? 1440 * 1024 : MiB
  await emptyImage(folder, source.format ?? 'raw', size, name)
}

/** What QEMU's loader takes for a Linux kernel: a boot sector with the setup header of boot protocol 2.12, and nothing to run. */
function linuxImage(): Buffer {
  const image = Buffer.alloc(8192)
  image.writeUInt8(1, 0x1f1) // setup sectors
  image.writeUInt16LE(0xaa55, 0x1fe)
  image.write('HdrS', 0x202)
  image.writeUInt16LE(0x20c, 0x206)
  image.writeUInt8(1, 0x211) // loaded high
  image.writeUInt32LE(0x7fff_ffff, 0x22c) // highest address of the initrd
  image.writeUInt32LE(2048, 0x238) // longest command line
  return image
}
