/** A guest that came back to its source, whose former destination cannot act on that at once. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { VirError } from '../../src/error.js'
import type { Outgoing } from '../../src/qemu/migration/outgoing.js'
import { tellReturned } from '../../src/qemu/migration/return.js'
import { until } from '../support/domain.js'
import { bareQemu } from './bare.js'

test('a destination that is busy when it is told that its guest came back is told again, on the same connection', async (t) => {
  const { qemu } = await bareQemu(t)
  const heard: string[] = []
  const busy = new VirError('VIR_ERR_OPERATION_TIMEOUT', 'VIR_FROM_QEMU', 'cannot acquire state change lock')
  const link = {
    isUp: true,
    request: (method: string) => (heard.push(method) === 1 ? Promise.reject(busy) : Promise.resolve({})),
  }
  const outgoing = {
    ...{ record: { name: 'guest', peer: 'there', phase: 'returned' }, link },
    underJob: (work: () => Promise<void>) => work(),
    forget: () => void heard.push('forgotten'),
  }
  await tellReturned(qemu, outgoing as unknown as Outgoing)
  assert.deepEqual(heard, ['return-done'])
  await until('it has heard it', () => heard.includes('forgotten'), 20_000)
  assert.deepEqual(heard, ['return-done', 'return-done', 'forgotten'])
})
