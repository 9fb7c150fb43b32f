import assert from 'node:assert/strict'
import { PassThrough } from 'node:stream'
import { test } from 'node:test'
import type { MigrationTransport } from '../../src/index.js'
import { acceptMemory, openMemory, type MemoryWay } from '../../src/migration/memory-way.js'
import { Transports } from '../../src/migration/transports.js'
import type { Params } from '../../src/tunnel/payloads.js'
import { virError } from '../support/domain.js'
import type { Cleanup } from '../support/images.js'
import { tunnelPair } from '../tunnel/pair.js'

const own = (name: string): MigrationTransport => ({
  name,
  encode: () => new PassThrough(),
  decode: () => new PassThrough(),
})

interface Agreed {
  here: MemoryWay
  there: MemoryWay
  offered: Params
}

/** Both ends of a channel, as two hosts agree on it. */
async function agree(t: Cleanup, source: Transports, destination: Transports, wanted?: string): Promise<Agreed> {
  const [client, server] = await tunnelPair(t)
  let offered: Params = {}
  const there = new Promise<MemoryWay>((resolve, reject) => {
    server.onOpen = (request) => {
      offered = request.params
      acceptMemory(destination, request).then(resolve, reject)
    }
  })
  const here = await openMemory(source, wanted, (params) => client.open('memory', params))
  return { here, there: await there, offered }
}

test('two hosts agree on what both have', async (t) => {
  const [source, destination] = [new Transports([own('a'), own('b')]), new Transports([own('b')])]
  for (const wanted of ['b', 'zstd', 'auto']) {
    const { here, there } = await agree(t, source, destination, wanted)
    assert.deepEqual([here.transport, there.transport], Array(2).fill(wanted === 'auto' ? 'zstd' : wanted))
    assert.ok(here.through?.toA !== undefined && there.through?.toB !== undefined)
  }
  for (const wanted of ['plain', undefined]) {
    const { here, there, offered } = await agree(t, source, destination, wanted)
    assert.deepEqual([here.through, there.through], [undefined, undefined])
    assert.deepEqual(offered, {})
  }
})

test('a destination that lacks a transport is refused when it was asked for, and gets memory as it is when not', async (t) => {
  const [client, server] = await tunnelPair(t)
  // as an older version answers, whatever it is offered
  server.onOpen = (request) => void request.accept()
  const open = (params: Params): ReturnType<typeof client.open> => client.open('memory', params)
  const { transport, through, channel } = await openMemory(new Transports(), 'auto', open)
  assert.deepEqual([transport, through, channel.destroyed], [undefined, undefined, false])
  for (const wanted of ['zstd', 'a'])
    await assert.rejects(
      openMemory(new Transports([own('a')]), wanted, open),
      virError('VIR_ERR_OPERATION_UNSUPPORTED', new RegExp(`the destination has no transport '${wanted}'`)),
    )
})

test('whatever a source offers, a destination takes what it knows', async () => {
  const transports = new Transports([own('a')])
  const take = async (offered: unknown): Promise<string | undefined> =>
    (await transports.take({ transports: offered }))?.name
  assert.equal(await take(['pigeon', 7, null, 'a', 'zstd']), 'a')
  for (const nothing of [undefined, 'a', {}, [], ['plain'], ['__proto__']]) assert.equal(await take(nothing), undefined)
})

test('transports need names of their own that a URI can begin with', () => {
  for (const name of ['zstd', 'plain', 'auto', 'xbzrle', 'tls'])
    assert.throws(() => new Transports([own(name)]), /already/)
  assert.throws(() => new Transports([own('a'), own('a')]), virError('VIR_ERR_INVALID_ARG', /transport 'a' already/))
  for (const name of ['', 'A', 'a+b', '1a', 'a'.repeat(33)])
    assert.throws(() => new Transports([own(name)]), virError('VIR_ERR_INVALID_ARG', /cannot be called/))
})
