import assert from 'node:assert/strict'
import { once } from 'node:events'
import { openSync, closeSync } from 'node:fs'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { test, type TestContext } from 'node:test'
import type { SchemaInfo } from '../../src/qemu/capabilities-schema.js'
import { QemuCapabilities } from '../../src/qemu/capabilities.js'
import { Monitor } from '../../src/qemu/monitor.js'
import { QmpSchema } from '../../src/qemu/qmp-schema.js'
import { temporaryFolder } from '../support/images.js'
import { requires } from '../support/requires.js'
import { emulator } from './command-qemu.js'

interface Command {
  execute: string
  arguments?: object
  id?: string
}

/** A QMP server that notes what it is told, and answers everything with an empty value of the right kind. */
async function recorder(t: TestContext, path: string, schema: readonly SchemaInfo[]): Promise<Command[]> {
  const commands: Command[] = []
  const isList = (name: string): boolean => {
    const command = schema.find((entity) => entity.name === name && entity['meta-type'] === 'command')
    return command?.['meta-type'] === 'command' && command['ret-type'].startsWith('[')
  }
  const version = { qemu: { major: 0, minor: 0, micro: 0 }, package: '' }
  const server = createServer((socket) => {
    socket.write(JSON.stringify({ QMP: { version, capabilities: [] } }) + '\n')
    createInterface(socket).on('line', (line) => {
      const command = JSON.parse(line) as Command
      commands.push(command)
      socket.write(JSON.stringify({ return: isList(command.execute) ? [] : {}, id: command.id }) + '\n')
    })
  })
  server.listen(path)
  await once(server, 'listening')
  t.after(() => server.close())
  return commands
}

/** Arguments for the methods that want some, as the driver gives them. */
function callArguments(fd: number): Record<string, unknown[]> {
  const node = { driver: 'null-co', 'node-name': 'node-1-storage' }
  return {
    setAction: [{ reboot: 'shutdown', shutdown: 'pause', panic: 'pause', watchdog: 'reset' }],
    balloon: [1 << 20],
    setVncPassword: ['secret'],
    passThrough: ['query-status', undefined],
    humanMonitorCommand: ['info status'],
    blockdevAdd: [node],
    blockdevDel: ['node-1-storage'],
    blockdevReopen: [node],
    blockStream: [streamArguments],
    jobCancel: ['job'],
    jobDismiss: ['job'],
    blockJobResume: ['job'],
    blockJobSetSpeed: ['job', 1024],
    nbdServerStart: [fd],
    blockExportAdd: ['export', 'node-1-format'],
    blockExportDel: ['export'],
    getfd: ['name', fd],
    migrateToFd: ['name'],
    migrateIncomingFd: ['name'],
  }
}

const streamArguments = {
  ...{ 'job-id': 'stream-vda', device: 'node-1-format', 'base-node': 'node-3-format', 'backing-file': '/base.raw' },
  ...{ speed: 0, 'on-error': 'enospc', 'filter-node-name': 'stream-vda' },
}

/** What sends nothing. */
const silent = new Set(['constructor', 'isClosed', 'close'])

test('every command that the driver’s monitor sends fits the schema that QEMU reports', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64')) return
  const folder = await temporaryFolder(t)
  const caps = await QemuCapabilities.load(emulator, { cacheDir: folder })
  const path = join(folder, 'monitor.sock')
  const commands = await recorder(t, path, caps.schema)
  const anomalies: string[] = []
  const events = {
    onEvent: () => undefined,
    onClose: () => undefined,
    onAnomaly: (what: string) => anomalies.push(what),
  }
  const monitor = await Monitor.connect(path, 'guest', events, 10_000)
  t.after(() => monitor.close())
  const fd = openSync('/dev/null', 'r')
  t.after(() => closeSync(fd))
  const args = callArguments(fd)
  const methods = Object.entries(Object.getOwnPropertyDescriptors(Monitor.prototype))
  for (const [name, { value }] of methods) {
    if (silent.has(name) || typeof value !== 'function') continue
    const call = value as (...all: unknown[]) => Promise<unknown>
    assert.ok(call.length === 0 || name in args, `this test must know arguments for Monitor.${name}`)
    await call.apply(monitor, args[name] ?? [])
  }
  const schema = new QmpSchema(caps.schema)
  assert.ok(commands.length > 30)
  for (const command of commands) {
    assert.deepEqual(schema.checkCommand(command.execute, command.arguments), [], JSON.stringify(command))
  }
  assert.deepEqual(anomalies, [])
})
