/** Our own connections to the disks of a QEMU. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { createServer } from 'node:net'
import { test, type TestContext } from 'node:test'
import type { DiskDef } from '../../src/conf/domain-def.js'
import { native } from '../../src/native.js'
import { serveNbd } from '../../src/nbd/server.js'
import type { Monitor } from '../../src/qemu/monitor/monitor.js'
import { NbdExports, nbdSocket } from '../../src/qemu/blocks/nbd-exports.js'
import { MemoryDisk } from '../nbd/memory.js'
import { temporaryFolder } from '../support/images.js'

const disk = { target: 'vda', source: { type: 'file', path: '/image', index: 1 } } as unknown as DiskDef

/** Exports as of a QEMU whose answers come after a turn of the event loop; `told`: what it was told. */
async function scripted(t: TestContext): Promise<{ exports: NbdExports; told: string[]; connections: () => number }> {
  const folder = await temporaryFolder(t)
  const [told, ids]: [string[], Set<string>] = [[], new Set()]
  const answer = async <T>(value: T): Promise<T> => {
    await new Promise((resolve) => setImmediate(resolve))
    return value
  }
  const monitor = {
    queryBlockExports: () => answer([...ids].map((id) => ({ id }))),
    blockExportAdd: async (id: string) => {
      told.push(`add ${id}`)
      if (ids.has(id)) throw new Error(`Block export id '${id}' is already in use`)
      ids.add(id)
      await answer({})
    },
    blockExportDel: (id: string) => {
      told.push(`del ${id}`)
      ids.delete(id)
      return answer({})
    },
    getfd: () => answer({}),
    closefd: () => answer({}),
  }
  let connections = 0
  const server = createServer((socket) => {
    connections++
    void serveNbd(socket, new Map([['vs-vda', new MemoryDisk(1 << 20)]])).catch(() => undefined)
  }).listen(nbdSocket(folder))
  await once(server, 'listening')
  const exports = new NbdExports(monitor as unknown as Monitor, folder, {
    listen: (path, backlog) => native.listenUnix(path, 0o600, backlog),
    connect: (path) => native.connectUnix(path),
    threadOf: () => undefined,
  })
  t.after(() => {
    exports.close()
    server.close()
  })
  return { exports, told, connections: () => connections }
}

test('whoever wants a disk while another one is connecting to it gets the same connection', async (t) => {
  const { exports, told, connections } = await scripted(t)
  const [one, other] = await Promise.all([exports.open(disk), exports.open(disk)])
  assert.equal(one, other)
  assert.equal(await exports.open(disk), one)
  assert.deepEqual([told, connections()], [['add vs-vda'], 1])
})

test('an export that is taken away while somebody connects to it is away then, and can be had again', async (t) => {
  const { exports, told } = await scripted(t)
  const opening = exports.open(disk)
  await exports.remove('vda')
  assert.equal((await opening).connected, false)
  assert.deepEqual(told, ['add vs-vda', 'del vs-vda'])
  assert.equal((await exports.open(disk)).connected, true)
})
