/** A process that takes a QEMU over, whose jobs go on meanwhile. */
import assert from 'node:assert/strict'
import { test, type TestContext } from 'node:test'
import type { DiskDef } from '../../src/conf/domain-def.js'
import { BlockJobs } from '../../src/qemu/blocks/blockjob.js'
import { catchUpWithJobs } from '../../src/qemu/streams/catch-up.js'
import { finalizeLater } from '../../src/qemu/streams/finalize.js'
import { JobQueue } from '../../src/qemu/core/jobs.js'
import type { Qemu } from '../../src/qemu/core/qemu.js'
import { settleLater } from '../../src/qemu/streams/settle.js'
import type { StreamHost, Vm } from '../../src/qemu/core/vm.js'
import { temporaryFolder } from '../support/images.js'
import { bareQemu } from './bare.js'

const nothing = (): void => undefined
const timestamp = { seconds: 0, microseconds: 0 }

interface Scene {
  qemu: Qemu
  vm: Vm
  host: StreamHost
  /** what QEMU was asked, in order */
  asked: string[]
  emitted: { kind: string }[]
}

/** A QEMU with the stream of 'vda', in that state; `on`: what happens when it is asked something. */
async function takenOver(
  t: TestContext,
  state: string,
  on: Record<string, (host: StreamHost) => void> = {},
): Promise<Scene> {
  const runDir = await temporaryFolder(t)
  const { qemu, emitted } = await bareQemu(t)
  const disk = { target: 'vda', alias: 'virtio-disk0', driver: {}, source: { type: 'file', path: '/t', index: 1 } }
  const asked: string[] = []
  const says: Record<string, unknown> = {
    queryJobs: [{ id: 'stream-vda', status: state, 'current-progress': 4, 'total-progress': 4 }],
    queryBlock: [{ qdev: 'virtio-disk0', inserted: { 'node-name': 'node-1-format', backing_file_depth: 0 } }],
  }
  const monitor = new Proxy(
    {},
    {
      get: (_target, name) => async () => {
        asked.push(String(name))
        on[String(name)]?.(host)
        if (name === 'jobDismiss') says['queryJobs'] = []
        await new Promise((resolve) => setImmediate(resolve))
        return says[String(name)] ?? []
      },
    },
  )
  const exports = {
    open: () => Promise.resolve({ size: 4, flush: () => Promise.resolve() }),
    remove: () => Promise.resolve(),
  }
  const access = { revokeUnused: () => Promise.resolve(), revokeImages: () => Promise.resolve() }
  const blockJobs = new BlockJobs({
    ready: nothing,
    pending: (job) => finalizeLater(qemu, vm, host, job),
    concluded: (job) => settleLater(qemu, vm, host, job),
  })
  const host = {
    ...{ mode: 'full', id: 1, pid: 1, startTime: '', runDir, monitor, exports, access, blockJobs },
    ...{ def: { disks: [disk as unknown as DiskDef], devices: [] }, guards: new Map(), staleHeaders: new Set() },
  } as unknown as StreamHost
  const vm = { name: 'guest', uuid: '', ref: {}, state: {}, host, jobs: new JobQueue() } as unknown as Vm
  blockJobs.register({ id: 'stream-vda', disk: 'vda', bandwidth: 0, engine: 'job', phase: 'job' })
  return { qemu, vm, host, asked, emitted }
}

test('a stream that has copied all while its QEMU is taken over is not ended before all nodes have been asked for', async (t) => {
  const isPending = ({ blockJobs }: StreamHost): void => {
    const data = { id: 'stream-vda', status: 'pending' }
    blockJobs.take({ event: 'JOB_STATUS_CHANGE', data, timestamp })
  }
  const { qemu, vm, host, asked } = await takenOver(t, 'running', { queryNodeNames: isPending })
  await catchUpWithJobs(qemu, vm, host)
  await qemu.idle()
  const [looked, ended] = [asked.lastIndexOf('queryNodeNames'), asked.indexOf('jobFinalize')]
  assert.ok(looked >= 0 && ended > looked, asked.join(' '))
})

test('a stream of whose end an event tells as well is settled once', async (t) => {
  const { qemu, vm, host, asked, emitted } = await takenOver(t, 'concluded')
  const data = { id: 'stream-vda', status: 'concluded' }
  host.blockJobs.take({ event: 'JOB_STATUS_CHANGE', data, timestamp })
  await catchUpWithJobs(qemu, vm, host)
  await qemu.idle()
  assert.equal(emitted.filter(({ kind }) => kind === 'block-job').length, 1)
  assert.equal(asked.filter((command) => command === 'jobDismiss').length, 1)
  assert.deepEqual(host.blockJobs.all, [])
})
