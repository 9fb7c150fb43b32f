import assert from 'node:assert/strict'
import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import type { DomainDef } from '../../src/conf/domain-def.js'
import { parseDomainXml } from '../../src/conf/parse.js'
import { assignAliases, assignSourceIndexes } from '../../src/machine/alias.js'
import { QemuCapabilities } from '../../src/machine/capabilities.js'
import { buildCommand } from '../../src/machine/command.js'
import { prepareDefinition } from '../../src/machine/definition.js'
import { checkSupported } from '../../src/machine/supported.js'
import { findProgram, requires } from '../support/requires.js'
import { freePort } from '../support/ports.js'

const emulator = findProgram('qemu-system-x86_64') ?? ''
const data = join(import.meta.dirname, '../../../test/data/definition')
const folder = mkdtempSync(join(tmpdir(), 'definition-'))
after(() => rmSync(folder, { recursive: true }))

/** Every disk gets a small image of its format. */
function giveImages(def: DomainDef): void {
  for (const { source, target } of def.disks) {
    if (!source || source.type === 'network') continue
    source.path = join(folder, `${def.name}-${target}`)
    source.backingStore = null
    spawnSync('qemu-img', ['create', '-q', '-f', source.format ?? 'raw', source.path, '1M'])
  }
}

/** Starts QEMU on the arguments without running the guest, asks it for its devices over a terminal, and ends it. */
async function qemuTakes(args: string[]): Promise<{ status: number | null; text: string }> {
  const at = args.indexOf('-mon')
  const withTerminal = [...args.slice(0, at - 2), ...args.slice(at + 2), '-monitor', 'stdio']
  const qemu = spawn(emulator, withTerminal)
  let text = ''
  for (const stream of [qemu.stdout, qemu.stderr]) {
    stream.on('data', (chunk: Buffer) => {
      text += chunk.toString()
      if (text.includes('bus: main-system-bus') && text.endsWith('(qemu) ')) qemu.stdin.write('quit\n')
    })
  }
  qemu.stdin.on('error', () => undefined)
  qemu.stdin.write('info qtree\n')
  await once(qemu, 'close')
  return { status: qemu.exitCode, text }
}

for (const file of readdirSync(data).filter((name) => name.endsWith('.xml') && !name.endsWith('.out.xml'))) {
  test(`QEMU takes the hardware of ${file} at the places that it was given`, async (t) => {
    if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
    const caps = await QemuCapabilities.load(emulator, { cacheDir: join(folder, 'cache') })
    const def = parseDomainXml(readFileSync(join(data, file), 'utf8'))
    giveImages(def)
    prepareDefinition(def, caps)
    checkSupported(def, caps)
    assignAliases(def)
    assignSourceIndexes(def)
    const args = buildCommand(def, { caps, accel: 'tcg', monitorFd: 3, runDir: folder, vncPort: await freePort() })
    const { status, text } = await qemuTakes(args)
    assert.equal(status, 0, text)
    for (const { alias } of def.disks) assert.ok(text.includes(`id "${alias ?? ''}"`), `${alias ?? ''} is in ${text}`)
  })
}
