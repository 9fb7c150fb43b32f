import assert from 'node:assert/strict'
import { test } from 'node:test'
import { setImmediate as turn } from 'node:timers/promises'
import { pino } from 'pino'
import type { ConnectEvent, DomainEvent } from '../../src/index.js'
import { Domain } from '../../src/index.js'
import { ref, scripted } from './scripted-driver.js'

const other = { name: 'other', uuid: '00000000-0000-4000-8000-000000000002', id: 2 }
const lifecycle = (event: number, domain = ref): DomainEvent => ({ kind: 'lifecycle', domain, event, detail: 0 })
const progress = (offset: number, disk = 'vda'): DomainEvent => ({
  kind: 'stream-progress',
  domain: ref,
  disk,
  offset,
  size: 1_000_000,
})

async function rest(events: AsyncIterable<ConnectEvent>): Promise<ConnectEvent[]> {
  const all: ConnectEvent[] = []
  for await (const event of events) all.push(event)
  return all
}

test('a listener hears what happens between domainEvents() and the first next(), with a domain that can be used', async () => {
  const { conn, emit } = await scripted({ domainGetState: () => Promise.resolve({ state: 5, reason: 2 }) })
  const events = conn.domainEvents()
  emit(lifecycle(1))
  emit(lifecycle(2))
  const first = await events.next()
  assert.ok(first.value?.kind === 'lifecycle')
  assert.equal(first.value.event, 1)
  assert.ok(first.value.domain instanceof Domain)
  assert.deepEqual(await first.value.domain.getState(), { state: 5, reason: 2 })
  assert.equal((await events.next()).value?.kind, 'lifecycle')
})

test('a filter lets through one domain, or some kinds', async () => {
  const { conn, emit } = await scripted({})
  const dom = await conn.domainLookupByName('guest')
  const ofDomain = conn.domainEvents({ domain: dom })
  const ofKind = conn.domainEvents({ kinds: ['stream-progress'] })
  emit(lifecycle(1))
  emit(lifecycle(2, other))
  emit(progress(7))
  await conn.close()
  assert.deepEqual(
    (await rest(ofDomain)).map(({ kind }) => kind),
    ['lifecycle', 'stream-progress'],
  )
  assert.deepEqual(
    (await rest(ofKind)).map(({ kind }) => kind),
    ['stream-progress'],
  )
})

test('a slow listener keeps the end and the newest positions, is told what it missed, and holds nobody up', async () => {
  const { conn, emit } = await scripted({})
  const slow = conn.domainEvents({ bound: 4 })
  const quick: number[] = []
  conn.on('lifecycle', ({ event }) => quick.push(event))
  for (let offset = 1; offset <= 1000; offset += 1) emit(progress(offset))
  for (let event = 0; event < 6; event += 1) emit(lifecycle(event))
  await turn()
  assert.deepEqual(quick, [0, 1, 2, 3, 4, 5])
  await conn.close()
  const heard = (await rest(slow)).map((event) => {
    if (event.kind === 'overflow') return `missed ${event.dropped}`
    return event.kind === 'lifecycle' ? `lifecycle ${event.event}` : event.kind
  })
  assert.deepEqual(heard, ['missed 3', 'lifecycle 2', 'lifecycle 3', 'lifecycle 4', 'lifecycle 5'])
})

test('positions of one disk are merged, those of another disk stay', async () => {
  const { conn, emit } = await scripted({})
  const events = conn.domainEvents({ bound: 2 })
  emit(progress(1, 'vdb'))
  for (let offset = 1; offset <= 50; offset += 1) emit(progress(offset))
  await conn.close()
  const heard = (await rest(events)).map((event) =>
    event.kind === 'stream-progress' ? [event.disk, event.offset] : [],
  )
  assert.deepEqual(heard, [
    ['vdb', 1],
    ['vda', 50],
  ])
})

test('a listener that throws or rejects is logged, hears on, and neither driver nor other listeners notice', async () => {
  const lines: string[] = []
  const logger = pino({ level: 'error' }, { write: (line: string) => void lines.push(line) })
  const { conn, emit } = await scripted({}, { logger })
  let calls = 0
  const others: number[] = []
  conn.on('lifecycle', ({ event }) => {
    calls += 1
    if (event === 1) throw new Error('first')
    return Promise.reject(new Error('second'))
  })
  conn.on('lifecycle', ({ event }) => others.push(event))
  emit(lifecycle(1))
  emit(lifecycle(2))
  await turn()
  await turn()
  assert.equal(calls, 2)
  assert.deepEqual(others, [1, 2])
  assert.match(lines.join(''), /"an event listener threw"/)
  assert.equal(lines.length, 2)
})

test('an emitter listener is called for one event at a time, and what it missed is told to `overflow`', async () => {
  const { conn, emit } = await scripted({})
  const heard: number[] = []
  let dropped = 0
  let release!: () => void
  const gate = new Promise<void>((resolve) => {
    release = resolve
  })
  conn.on('lifecycle', async ({ event }) => {
    heard.push(event)
    await gate
  })
  conn.on('overflow', (event) => (dropped += event.dropped))
  await turn()
  for (let event = 0; event < 1105; event += 1) emit(lifecycle(event))
  await turn()
  assert.deepEqual(heard, [0])
  release()
  while (heard.at(-1) !== 1104) await turn()
  await turn()
  assert.equal(heard.length, 1001)
  assert.equal(dropped, 104)
})

test('off() ends a listener, and the same listener is not registered twice', async () => {
  const { conn, emit } = await scripted({})
  const heard: number[] = []
  const listener = ({ event }: { event: number }): void => void heard.push(event)
  conn.on('lifecycle', listener).on('lifecycle', listener)
  emit(lifecycle(1))
  await turn()
  conn.off('lifecycle', listener)
  emit(lifecycle(2))
  await turn()
  assert.deepEqual(heard, [1])
})

test('closing the connection ends iteration, after what was heard before', async () => {
  const { conn, emit } = await scripted({})
  const events = conn.domainEvents()
  emit(lifecycle(1))
  const all = rest(events)
  await turn()
  await conn.close()
  assert.equal((await all).length, 1)
})

test('a bound that is no bound is refused', async () => {
  const { conn } = await scripted({})
  assert.throws(() => conn.domainEvents({ bound: 0 }), { code: 'VIR_ERR_INVALID_ARG' })
})
