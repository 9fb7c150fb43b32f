import assert from 'node:assert/strict'
import { execFileSync, spawn as nodeSpawn } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync, readlinkSync } from 'node:fs'
import { test } from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import { native, type ProcessExit } from '../../src/native.js'
import { exitOf, sh, standardFds } from './spawned.js'

const addon = new URL('../../../build/Release/virstream.node', import.meta.url).pathname

function child(script: string): number {
  return native.spawn({ file: sh, args: ['sh', '-c', script], env: { PATH: '/usr/bin:/bin' }, fds: standardFds })
}

test('a child that exits gives its code, one that a signal ends gives the signal', async () => {
  assert.deepEqual(await exitOf(child('exit 42')), { code: 42, signal: null })
  assert.deepEqual(await exitOf(child('kill -9 $$')), { code: null, signal: 9 })
})

test('a child that ended before it was watched still gives its code', async () => {
  const pid = child('exit 3')
  await delay(100)
  assert.deepEqual(await exitOf(pid), { code: 3, signal: null })
})

test('kill reaches the watched process and answers false once it is gone', async () => {
  const pid = child('exec sleep 60')
  let end: (exit: ProcessExit) => void = () => undefined
  const ended = new Promise<ProcessExit>((resolve) => (end = resolve))
  const watch = native.watchProcess(pid, (exit) => end(exit))
  assert.equal(watch.pid, pid)
  assert.equal(watch.kill(0), true)
  assert.equal(watch.kill(15), true)
  assert.deepEqual(await ended, { code: null, signal: 15 })
  assert.equal(watch.kill(15), false)
  watch.close()
  watch.ref()
  watch.unref()
})

test('a process that is not our child is watched as well, without a code', async () => {
  // the shell in the middle ends at once, and the sleep is left to init
  const pid = Number(execFileSync(sh, ['-c', 'sleep 60 >/dev/null 2>&1 & echo $!'], { encoding: 'utf8' }))
  const ended = exitOf(pid)
  process.kill(pid, 'SIGTERM')
  assert.deepEqual(await ended, { code: null, signal: null })
})

test('a child of Node itself is left for Node to reap', async () => {
  const theirs = nodeSpawn(sh, ['-c', 'exit 5'])
  const closed = once(theirs, 'exit')
  const exit = await exitOf(theirs.pid ?? 0)
  assert.ok(exit.code === 5 || exit.code === null)
  assert.deepEqual(await closed, [5, null])
})

test('a pid without a process is ESRCH', async () => {
  const pid = child('exit 0')
  await exitOf(pid)
  assert.throws(() => native.watchProcess(pid, () => undefined), { code: 'ESRCH', errno: -3, syscall: 'pidfd_open' })
})

test('illegal arguments are TypeErrors', () => {
  assert.throws(() => native.watchProcess('1' as unknown as number, () => undefined), TypeError)
  assert.throws(() => native.watchProcess(process.pid, undefined as unknown as () => void), TypeError)
  const watch = native.watchProcess(process.pid, () => undefined)
  assert.throws(() => watch.kill('9' as unknown as number), TypeError)
  assert.throws(() => watch.kill(999), { code: 'EINVAL', syscall: 'pidfd_send_signal' })
  watch.close()
})

/** How many processes this process has descriptors of. */
function openPidfds(): number {
  const target = (fd: string): string => {
    try {
      return readlinkSync(`/proc/self/fd/${fd}`)
    } catch {
      return '' // the directory that was read itself
    }
  }
  return readdirSync('/proc/self/fd').filter((fd) => target(fd).includes('pidfd')).length
}

test('a closed watch keeps silent, sends no signals, and the process goes on', async () => {
  const pid = child('exec sleep 60')
  const watch = native.watchProcess(pid, () => assert.fail('it was closed'))
  watch.close()
  watch.close()
  assert.throws(() => watch.kill(15), { code: 'EBADF' })
  await delay(20)
  assert.equal(process.kill(pid, 0), true)
  const ended = exitOf(pid)
  process.kill(pid, 'SIGKILL')
  assert.deepEqual(await ended, { code: null, signal: 9 })
})

async function outcome(script: string): Promise<{ code: number | null; output: string }> {
  const node = nodeSpawn(process.execPath, ['--expose-gc', '-e', script, addon], { stdio: ['ignore', 'pipe', 'pipe'] })
  let output = ''
  node.stdout.on('data', (chunk: Buffer) => (output += chunk.toString()))
  node.stderr.on('data', (chunk: Buffer) => (output += chunk.toString()))
  const guard = setTimeout(() => node.kill('SIGKILL'), 20_000)
  const [code] = (await once(node, 'close')) as [number | null]
  clearTimeout(guard)
  return { code, output }
}

test('a watch keeps the event loop going until unref lets it end', async () => {
  const watched = `const native = require(process.argv[1])
    const watch = native.watchProcess(process.ppid, () => {})`
  assert.deepEqual(await outcome(`${watched}; watch.unref()`), { code: 0, output: '' })
  assert.deepEqual(
    await outcome(`${watched}; watch.unref(); watch.ref(); setTimeout(() => process.exit(9), 300).unref()
    setInterval(() => {}, 50).unref(); setTimeout(() => {}, 400)`),
    { code: 9, output: '' },
  )
})

test('a watch that nobody holds is not collected, and one that throws in its callback is an uncaught exception', async () => {
  const start = `const native = require(process.argv[1])
    const fds = [0, 1, 2].map((fd) => ({ source: fd, target: fd }))
    const pid = native.spawn({ file: '/bin/sh', args: ['sh', '-c', 'sleep 0.3'], env: { PATH: '/usr/bin:/bin' }, fds })`
  const kept = await outcome(`${start}; native.watchProcess(pid, (exit) => console.log(JSON.stringify(exit)))
    global.gc(); setTimeout(() => global.gc(), 50)`)
  assert.deepEqual(kept, { code: 0, output: '{"code":0,"signal":null}\n' })
  const thrown =
    await outcome(`${start}; process.on('uncaughtException', (error) => { console.log('caught', error.message); process.exit(4) })
    native.watchProcess(pid, () => { throw new Error('on purpose') })`)
  assert.deepEqual(thrown, { code: 4, output: 'caught on purpose\n' })
})

test('watches can be many, and closing all of them leaves no descriptor', async () => {
  const before = openPidfds()
  const watches = Array.from({ length: 500 }, () => native.watchProcess(process.pid, () => undefined))
  assert.equal(openPidfds(), before + 500)
  for (const watch of watches) watch.close()
  for (let tries = 0; tries < 500 && openPidfds() > before; tries++) await delay(10)
  assert.equal(openPidfds(), before)
})
