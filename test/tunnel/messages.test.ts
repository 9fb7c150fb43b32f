import assert from 'node:assert/strict'
import { test } from 'node:test'
import { failFrom, VirError } from '../../src/error.js'
import { TunnelError } from '../../src/tunnel/error.js'
import { Messages, type MessagesOptions } from '../../src/tunnel/messages.js'
import { pipe, type PipeFaults } from '../nbd/pipe.js'

function pair(server: MessagesOptions, client: MessagesOptions = {}, faults?: PipeFaults): [Messages, Messages] {
  const [near, far] = pipe(faults)
  return [new Messages(near, client), new Messages(far, server)]
}

test('requests are answered in any order, by either side', async () => {
  const release: (() => void)[] = []
  const [near, far] = pair(
    {
      onRequest: async (method, params) => {
        if (method === 'slow') await new Promise<void>((resolve) => release.push(resolve))
        else release.pop()?.()
        return { method, params }
      },
    },
    { onRequest: (method) => `I am ${method}` },
    { pieces: 1 },
  )
  const answers = await Promise.all([near.request('slow', [1]), near.request('quick', 'ü'), far.request('asked', {})])
  assert.deepEqual(answers, [{ method: 'slow', params: [1] }, { method: 'quick', params: 'ü' }, 'I am asked'])
  near.close()
  assert.equal(await near.closed, undefined)
  assert.equal(await far.closed, undefined)
  await assert.rejects(near.request('late', 1), { code: 'ESHUTDOWN' })
})

test('errors come back as they were: libvirt’s with code and domain, others with their message', async () => {
  const [near] = pair({
    onRequest: (method) => {
      if (method === 'vir') throw failFrom('VIR_FROM_QEMU')('VIR_ERR_OPERATION_INVALID', 'the domain does not run')
      throw new Error('out of luck')
    },
  })
  await assert.rejects(near.request('vir', null), (error) => {
    assert.ok(error instanceof VirError)
    assert.deepEqual([error.code, error.domain], ['VIR_ERR_OPERATION_INVALID', 'VIR_FROM_QEMU'])
    return error.message === 'the domain does not run'
  })
  await assert.rejects(near.request('other', null), {
    name: 'TunnelError',
    code: 'ECONNREFUSED',
    message: 'out of luck',
  })
})

test('a channel that was broken before there were messages is over, and requests say why', async () => {
  const [near] = pipe()
  near.on('error', () => undefined).destroy(new Error('the daemon is gone'))
  await new Promise((resolve) => near.once('close', resolve))
  const messages = new Messages(near)
  assert.match((await messages.closed)?.message ?? '', /the daemon is gone/)
  await assert.rejects(messages.request('x', {}), /the daemon is gone/)
})

test('a request that is given up is taken back at the other side', async () => {
  const signals: AbortSignal[] = []
  const [near] = pair({
    onRequest: async (method, _params, signal) => {
      if (method === 'count') return signals.filter(({ aborted }) => aborted).length
      signals.push(signal)
      return await new Promise(() => undefined)
    },
  })
  await assert.rejects(near.request('hangs', null, { timeout: 5 }), { code: 'ETIMEDOUT' })
  const controller = new AbortController()
  const aborted = near.request('hangs', null, { signal: controller.signal })
  controller.abort(new Error('the user had enough'))
  await assert.rejects(aborted, { message: 'the user had enough' })
  assert.equal(await near.request('count', null), 2)
})

test('what is too long is not sent, and not taken', async () => {
  const [near, far] = pair({ maxBytes: 1000, onRequest: () => 'x'.repeat(2000) })
  await assert.rejects(near.request('long answer', null), { code: 'ECONNREFUSED', message: /is too long/ })
  await assert.rejects(far.request('x'.repeat(1000), null), { code: 'EINVAL' })
  await assert.rejects(near.request('long request', 'x'.repeat(2000)), { name: 'TunnelError' })
  assert.equal((await far.closed)?.code, 'EPROTO')
})

test('what is no message ends the channel', async () => {
  const length = Buffer.from([0, 0, 0, 4])
  const wrong = ['null', '"ab"', '{  }', '{"i"', '[{}]']
  for (const body of [...wrong.map((text) => Buffer.concat([length, Buffer.from(text)])), Buffer.alloc(8, 0xff)]) {
    const [near, far] = pipe()
    near.write(body)
    const messages = new Messages(far)
    assert.equal((await messages.closed)?.code, 'EPROTO', body.toString('latin1'))
  }
})

test('a channel that is cut in a message rejects who waits', async () => {
  const [near] = pair({ onRequest: () => 'answer' }, {}, { cutAfter: 20 })
  await assert.rejects(near.request('question', 'with a long text'), TunnelError)
})

test('what has been asked is answered before the channel ends', async () => {
  const ends: (() => void)[] = []
  const [near, far] = pair({
    onRequest: async (method) => {
      far.closeWhenAnswered()
      if (method === 'last') await new Promise<void>((resolve) => ends.push(resolve))
      return method
    },
  })
  const answers = Promise.all([near.request('last', 1), near.request('first', 1)])
  assert.equal(await Promise.race([far.closed, near.request('another', 1)]), 'another')
  for (const end of ends) end()
  assert.deepEqual(await answers, ['last', 'first'])
  assert.equal(await near.closed, undefined)
  await assert.rejects(near.request('late', 1), { code: 'ESHUTDOWN' })
})

test('too many requests at a time are too many', async () => {
  const [near, far] = pair({ maxInFlight: 3, onRequest: () => new Promise(() => undefined) })
  const results = await Promise.allSettled([1, 2, 3, 4].map((i) => near.request('hangs', i)))
  assert.ok(results.every(({ status }) => status === 'rejected'))
  assert.match((await far.closed)?.message ?? '', /too many requests/)
})
