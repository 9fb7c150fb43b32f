import assert from 'node:assert/strict'
import { once } from 'node:events'
import { test } from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import { Worker } from 'node:worker_threads'
import { native } from '../../src/native.js'
import { assertNoMoreFds, exitOf, openFds } from './spawned.js'

const addon = new URL('../../../build/Release/virstream.node', import.meta.url).pathname

/** A worker whose script has `native`, `port` (to us) and `child(script)`. */
function worker(script: string): Worker {
  const prelude = `const { parentPort: port, workerData } = require('node:worker_threads')
    const native = require(workerData)
    const fds = [0, 1, 2].map((fd) => ({ source: fd, target: fd }))
    const child = (script) => native.spawn({ file: '/bin/sh', args: ['sh', '-c', script], env: { PATH: '/usr/bin:/bin' }, fds });`
  return new Worker(prelude + script, { eval: true, workerData: addon })
}

test('several workers spawn and watch at the same time, each on its own event loop', async () => {
  const script = `let left = 20
    for (let i = 0; i < 20; i++) {
      native.watchProcess(child('exit ' + i), (exit) => {
        if (exit.code !== i) throw new Error('wrong code ' + exit.code)
        if (--left === 0) port.postMessage('done')
      })
    }`
  const workers = Array.from({ length: 4 }, () => worker(script))
  const ended = Promise.all(workers.map((one) => once(one, 'exit')))
  const messages = await Promise.all(workers.map((one) => once(one, 'message')))
  assert.deepEqual(messages.flat(), ['done', 'done', 'done', 'done'])
  assert.deepEqual(await ended, [[0], [0], [0], [0]])
})

test('descriptors, locks and attributes work in a worker', async () => {
  const script = `const { openSync, closeSync, writeFileSync, mkdtempSync, rmSync } = require('node:fs')
    const directory = mkdtempSync('/tmp/virstream-worker-')
    const file = directory + '/file'
    writeFileSync(file, 'x')
    const fd = openSync(file, 'r+')
    const [a, b] = native.socketpair()
    const sent = native.sendFds(a, new Uint8Array([1, 2]), [fd])
    const got = native.recvFds(b, 10)
    const locked = native.lockFile(fd, { type: 'write', start: 0, length: 0 })
    closeSync(fd)
    for (const one of [a, b, ...got.fds]) native.close(one)
    rmSync(directory, { recursive: true })
    port.postMessage({ sent, bytes: [...got.bytes], fds: got.fds.length, locked, names: typeof native.listxattr('/') })`
  const one = worker(script)
  const ended = once(one, 'exit')
  const [message] = (await once(one, 'message')) as [unknown]
  assert.deepEqual(message, { sent: 2, bytes: [1, 2], fds: 1, locked: true, names: 'object' })
  assert.deepEqual(await ended, [0])
})

test('a worker that is terminated leaves no watch behind, and the watched process goes on', async () => {
  await worker('port.postMessage(0)').terminate()
  await delay(50)
  const before = openFds()
  for (let round = 0; round < 10; round++) {
    const one = worker(`const pid = child('exec sleep 60')
      const watches = Array.from({ length: 50 }, () => native.watchProcess(pid, () => {}))
      watches[0].close(); watches[1].unref(); native.watchProcess(process.pid, () => {}).unref()
      port.postMessage(pid)`)
    const [pid] = (await once(one, 'message')) as [number]
    await one.terminate()
    assert.equal(process.kill(pid, 0), true)
    const ended = exitOf(pid)
    process.kill(pid, 'SIGKILL')
    assert.deepEqual(await ended, { code: null, signal: 9 })
  }
  await assertNoMoreFds(before)
})

test('a worker that is terminated while its processes exit does not bring us down', async () => {
  for (let round = 0; round < 20; round++) {
    const one = worker(`for (let i = 0; i < 20; i++) native.watchProcess(child('exit 0'), () => { for (;;) {} })
      port.postMessage(0)`)
    await once(one, 'message')
    await delay(round)
    assert.equal(await one.terminate(), 1)
  }
  assert.equal(typeof native.spawn, 'function')
})

test('a worker that exits by itself with open watches ends cleanly', async () => {
  const one = worker('native.watchProcess(process.pid, () => {}); process.exit(6)')
  assert.deepEqual(await once(one, 'exit'), [6])
})
