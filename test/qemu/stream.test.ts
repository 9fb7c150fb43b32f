/** What changes while a stream is being begun. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { test } from 'node:test'
import type { DiskDef } from '../../src/conf/domain-def.js'
import { BlockJobs } from '../../src/qemu/blocks/blockjob.js'
import type { Qemu } from '../../src/qemu/core/qemu.js'
import { startStream } from '../../src/qemu/streams/stream.js'
import { streamUnit } from '../../src/qemu/streams/unit.js'
import { type Live, Vm } from '../../src/qemu/core/vm.js'
import { virError } from '../support/domain.js'
import { temporaryFolder } from '../support/images.js'
import { bareQemu } from './bare.js'

const nothing = (): void => undefined

for (const [what, begin] of [
  ['stream', (qemu: Qemu, vm: Vm) => startStream(qemu, vm, 'vda', {})],
  ['unit', (qemu: Qemu, vm: Vm) => streamUnit(qemu, vm, 'vda', 0, {})],
] as const)
  test(`a domain that ends while the base of a ${what} is asked for is not streamed without its guest instead`, async (t) => {
    const folder = await temporaryFolder(t)
    const vm = new Vm('guest', '')
    // the second one is asked when the first one has answered
    const [first, second] = [join(folder, 'first.nbd'), join(folder, 'second.nbd')]
    for (const path of [first, second]) {
      const server = createServer(() => (vm.live = undefined)).listen(path)
      t.after(() => server.close())
      await once(server, 'listening')
    }
    const image = (socket: string): object => ({
      type: 'network',
      protocol: 'nbd',
      hosts: [{ transport: 'unix', socket }],
    })
    const chain = { ...image(first), backingStore: { ...image(second), backingStore: null } }
    const source = { type: 'file', path: '/top', format: 'qcow2', backingStore: chain }
    const disk = { target: 'vda', device: 'disk', driver: {}, source } as unknown as DiskDef
    const blockJobs = new BlockJobs({ ready: nothing, pending: nothing, concluded: nothing })
    vm.live = { mode: 'full', def: { disks: [disk] }, blockJobs } as unknown as Live
    const { qemu } = await bareQemu(t)
    await assert.rejects(begin(qemu, vm), virError('VIR_ERR_OPERATION_FAILED', /^domain 'guest' stopped meanwhile$/))
    assert.equal(vm.offline, undefined)
  })
