import assert from 'node:assert/strict'
import { test } from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import { VIR_DOMAIN_EVENT_STARTED, VIR_DOMAIN_EVENT_SUSPENDED } from '../../src/index.js'
import type { ConnectEvent } from '../../src/index.js'
import { eventWords } from '../../src/cli/words.js'
import { cli } from './run.js'

test('event lists its types, and waits no longer than it is told', async () => {
  assert.match((await cli(['event', '--list'])).stdout, /^lifecycle\nblock-job\nstream-progress\n/)
  const { status, stdout } = await cli(['event', '--all', '--timeout', '1'])
  assert.equal(status, 0)
  assert.equal(stdout, 'event loop timed out\nevents received: 0\n\n')
})

test('Ctrl-C ends waiting for events, as a success', async () => {
  const before = process.listenerCount('SIGINT')
  const running = cli(['event', '--all', '--loop'])
  while (process.listenerCount('SIGINT') === before) await delay(5)
  process.emit('SIGINT')
  const { status, stdout } = await running
  assert.equal(status, 0)
  assert.equal(stdout, 'event loop interrupted\nevents received: 0\n\n')
  assert.equal(process.listenerCount('SIGINT'), before)
})

test('events are told in the words of virsh', () => {
  const domain = { name: 'x', uuid: '', id: 1 } as never
  const words = (event: Omit<ConnectEvent, 'domain'>): string => eventWords({ ...event, domain } as ConnectEvent)
  assert.equal(words({ kind: 'lifecycle', event: VIR_DOMAIN_EVENT_STARTED, detail: 0 } as never), 'Started Booted')
  assert.equal(words({ kind: 'lifecycle', event: VIR_DOMAIN_EVENT_SUSPENDED, detail: 2 } as never), 'Suspended Ioerror')
  const job = { kind: 'block-job', disk: 'vda', path: '/i', type: 1 }
  assert.equal(words({ ...job, status: 0 } as never), 'Block Pull for /i completed')
  assert.equal(
    words({ ...job, path: '', status: 1, error: 'no space' } as never),
    'Block Pull for vda failed: no space',
  )
  assert.equal(words({ kind: 'stream-progress', disk: 'vda', offset: 1, size: 2 } as never), 'vda 1/2')
  assert.equal(
    words({ kind: 'io-error', disk: 'vda', path: '/i', alias: 'virtio-disk0', action: 1, reason: 'enospc' } as never),
    '/i (virtio-disk0) pause due to enospc',
  )
  assert.equal(eventWords({ kind: 'overflow', dropped: 7 }), '7 events were dropped')
})
