/** Looks at streams, whose domain goes on while they wait for answers. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'
import type { DiskDef } from '../../src/conf/domain-def.js'
import { BlockJobs, type BlockJobRecord } from '../../src/qemu/blocks/blockjob.js'
import { look } from '../../src/qemu/streams/progress.js'
import type { Qemu } from '../../src/qemu/core/qemu.js'
import type { StreamHost, Vm } from '../../src/qemu/core/vm.js'
import { temporaryFolder } from '../support/images.js'
import { bareQemu } from './bare.js'

const MiB = 1 << 20
const nothing = (): void => undefined
const record: BlockJobRecord = { id: 'stream-vda', disk: 'vda', bandwidth: 0, engine: 'job', phase: 'job' }

interface Scene {
  qemu: Qemu
  vm: Vm
  host: StreamHost
  asked: string[]
}

/** A stream that QEMU has brought to a halt, as it says; its base answers, and while it is asked for a block `meanwhile` happens. */
async function halted(t: TestContext, meanwhile: (jobs: BlockJobs) => void): Promise<Scene> {
  const socket = join(await temporaryFolder(t), 'base.nbd')
  const server = createServer((connection) => connection.on('error', nothing)).listen(socket)
  t.after(() => server.close())
  await once(server, 'listening')
  const base = { type: 'network', protocol: 'nbd', name: 'base', hosts: [{ transport: 'unix', socket }] }
  const disk = { target: 'vda', source: { type: 'file', path: '/top', backingStore: base } } as unknown as DiskDef
  const blockJobs = new BlockJobs({ ready: nothing, pending: nothing, concluded: nothing })
  const asked: string[] = []
  const info = { device: record.id, offset: MiB, len: 4 * MiB, 'io-status': 'failed', status: 'paused' }
  const monitor = {
    queryBlockJobs: () => Promise.resolve([info]),
    jobCancel: (id: string) => Promise.resolve(asked.push(`cancel ${id}`)),
    blockJobResume: (id: string) => Promise.resolve(asked.push(`resume ${id}`)),
  }
  const cache = (): Promise<void> => {
    meanwhile(blockJobs)
    return Promise.resolve()
  }
  const exports = { open: () => Promise.resolve({ cache, size: 4 * MiB }) }
  const host = { def: { disks: [disk] }, blockJobs, monitor, exports } as unknown as StreamHost
  const { qemu } = await bareQemu(t)
  return { qemu, vm: { host, ref: {} } as unknown as Vm, host, asked }
}

test('a stream that an error has brought to a halt, and whose base answers, fails', async (t) => {
  const { qemu, vm, host, asked } = await halted(t, nothing)
  const job = host.blockJobs.register(record)
  await look(qemu, vm, host)
  assert.deepEqual([job.failure, asked], ['Input/output error', ['cancel stream-vda']])
})

test('a stream that was stopped while its base was asked is not told to end, nor is one that has begun since then', async (t) => {
  const { qemu, vm, host, asked } = await halted(t, (jobs) => {
    jobs.forget(first)
    jobs.register(record)
  })
  const first = host.blockJobs.register(record)
  await look(qemu, vm, host)
  assert.deepEqual(asked, [])
  assert.equal(host.blockJobs.ofDisk('vda')?.failure, undefined)
})

test('a stream that has gone on by itself while its base was asked does not fail', async (t) => {
  const { qemu, vm, host, asked } = await halted(t, () => void job.advance(2 * MiB, 4 * MiB))
  const job = host.blockJobs.register(record)
  await look(qemu, vm, host)
  assert.deepEqual([job.failure, asked], [undefined, []])
})

test('a stream that has ended while its base was asked takes no orders', async (t) => {
  const { qemu, vm, host, asked } = await halted(t, () => host.blockJobs.conclude(job))
  const job = host.blockJobs.register(record)
  await look(qemu, vm, host)
  assert.deepEqual([job.failure, asked], [undefined, []])
})
