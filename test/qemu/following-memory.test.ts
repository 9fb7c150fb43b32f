/** Memory that follows its guest, interrupted while it is just about to go on. */
import assert from 'node:assert/strict'
import { PassThrough } from 'node:stream'
import { test } from 'node:test'
import { FollowingMemory } from '../../src/qemu/migration/postcopy.js'
import { MigrationWatch } from '../../src/qemu/migration/watch.js'
import type { Outgoing } from '../../src/qemu/migration/outgoing.js'
import type { Live, Vm } from '../../src/qemu/core/vm.js'
import { bareQemu } from './bare.js'

test('an interruption while the two sides find each other again holds: nothing goes over until it is ended', async (t) => {
  const { qemu } = await bareQemu(t)
  const asked: string[] = []
  let interrupt = (): void => undefined
  const channel = new PassThrough()
  const link = {
    isUp: true,
    request: (method: string) => {
      asked.push(method)
      interrupt()
      return Promise.resolve({ memory: 'waits' })
    },
    openMemory: () => {
      asked.push('memory')
      return Promise.resolve({ channel, through: {} })
    },
  }
  const monitor = { run: () => Promise.resolve({ status: 'postcopy-paused' }) }
  const live = { monitor, ended: new Promise(() => undefined) } as unknown as Live
  const record = { name: 'guest', phase: 'serving', params: {}, peer: 'there', memoryFollows: true }
  const vm = { live, state: {}, uuid: '' } as unknown as Vm
  const outgoing = { record, link, vm, stats: { goBy: () => undefined } } as unknown as Outgoing
  const watch = new MigrationWatch(live)
  const memory = new FollowingMemory(qemu, outgoing, live, watch)
  interrupt = () => memory.interrupt()
  memory.recover()
  t.after(() => memory.close())
  while (asked.length === 0) await new Promise((resolve) => setImmediate(resolve))
  for (let turns = 0; turns < 20; turns++) await new Promise((resolve) => setImmediate(resolve))
  assert.deepEqual(asked, ['memory-recover'])
})
