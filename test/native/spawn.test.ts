import assert from 'node:assert/strict'
import { closeSync, mkdirSync, openSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import { native, type SpawnOptions } from '../../src/native.js'
import { findProgram, requires } from '../support/requires.js'
import { assertNoMoreFds, exitOf, openFds, run, scratch, sh, standardFds } from './spawned.js'

const plain: SpawnOptions = { file: sh, args: ['sh', '-c', 'exit 7'], env: {}, fds: standardFds }

test('a spawned program gets its arguments, its environment and its exit code back to us', async (t) => {
  const script = 'echo "$0 $1 $GREETING"; env | sort; exit 7'
  const done = await run(t, sh, ['-c', script, 'zero', 'one two'], { env: { GREETING: 'hällo' } })
  assert.equal(done.code, 7)
  assert.equal(done.signal, null)
  const lines = done.output.split('\n')
  assert.equal(lines[0], 'zero one two hällo')
  assert.ok(lines.includes('GREETING=hällo'))
  assert.ok(!done.output.includes('PATH=/'), 'nothing of our environment leaks')
})

test('a program that does not exist is an error like those of Node', () => {
  assert.throws(() => native.spawn({ ...plain, file: '/nonexistent/program' }), {
    code: 'ENOENT',
    errno: -2,
    syscall: 'spawn execve',
    path: '/nonexistent/program',
    message: "ENOENT: no such file or directory, spawn execve '/nonexistent/program'",
  })
})

test('a file that is no program is EACCES, a missing working directory names that directory', (t) => {
  const file = join(scratch(t), 'data')
  writeFileSync(file, 'no program')
  assert.throws(() => native.spawn({ ...plain, file }), { code: 'EACCES', syscall: 'spawn execve', path: file })
  assert.throws(() => native.spawn({ ...plain, cwd: '/nonexistent' }), {
    code: 'ENOENT',
    syscall: 'spawn chdir',
    path: '/nonexistent',
  })
})

test('a descriptor that is not open is EBADF', () => {
  const fds = [...standardFds, { source: 54321, target: 3 }]
  assert.throws(() => native.spawn({ ...plain, fds }), { code: 'EBADF', syscall: 'spawn fcntl' })
})

test('illegal arguments are refused before anything starts', () => {
  assert.throws(() => native.spawn({ ...plain, file: 'sh' }), /file must be an absolute path/)
  assert.throws(() => native.spawn({ ...plain, args: [] }), /args must be an array with argv\[0\]/)
  assert.throws(() => native.spawn({ ...plain, args: ['a\0b'] }), /must not hold a NUL/)
  assert.throws(() => native.spawn({ ...plain, fds: standardFds.slice(1) }), /targets 0, 1 and 2/)
  assert.throws(() => native.spawn({ ...plain, fds: [...standardFds, { source: 0, target: 2 }] }), /target twice/)
  assert.throws(() => native.spawn({ ...plain, fds: [...standardFds, { source: -1, target: 3 }] }), RangeError)
  assert.throws(() => native.spawn({ ...plain, uid: -1 }), /uid must be a whole number/)
  assert.throws(() => native.spawn({ ...plain, uid: 4294967295 }), /uid must be a whole number/)
  assert.throws(() => native.spawn({ ...plain, uid: 1.5 }), /uid must be a whole number/)
  assert.throws(() => native.spawn({ ...plain, env: { A: 1 } as unknown as Record<string, string> }), TypeError)
  assert.throws(() => native.spawn(undefined as unknown as SpawnOptions), TypeError)
})

test('descriptors can be swapped, moved over each other and doubled', async (t) => {
  const directory = scratch(t)
  const fds = ['a', 'b', 'c'].map((name) => {
    writeFileSync(join(directory, name), name)
    return openSync(join(directory, name), 'r')
  })
  t.after(() => {
    for (const fd of fds) closeSync(fd)
  })
  const [a = -1, b = -1, c = -1] = fds
  const mapping = [
    { source: a, target: b },
    { source: b, target: c },
    { source: c, target: a },
    { source: a, target: 60 },
    { source: a, target: 61 },
  ]
  const script = 'for fd in "$@"; do printf "%s=%s " "$fd" "$(readlink /proc/$$/fd/$fd)"; done'
  const done = await run(t, sh, ['-c', script, 'sh', ...mapping.map((one) => String(one.target))], { fds: mapping })
  const name = new Map([
    [a, 'a'],
    [b, 'b'],
    [c, 'c'],
  ])
  const expected = mapping.map((one) => `${one.target}=${directory}/${name.get(one.source) ?? ''} `).join('')
  assert.equal(done.output, expected)
})

test('the child has the listed descriptors and no others, even those without close-on-exec', async (t) => {
  const file = openSync('/dev/null', 'r')
  t.after(() => closeSync(file))
  // a first child passes a descriptor on that is not close-on-exec, to a node which lists what its own child gets
  const script = `
    const { createRequire } = require('node:module')
    const native = createRequire(process.argv[1])(process.argv[1])
    const fds = [0, 1, 2].map((fd) => ({ source: fd, target: fd }))
    native.spawn({ file: '/bin/ls', args: ['ls', '/proc/self/fd'], env: {}, fds })`
  const addon = new URL('../../../build/Release/virstream.node', import.meta.url).pathname
  const done = await run(t, process.execPath, ['-e', script, addon], { fds: [{ source: file, target: 77 }] })
  assert.equal(done.code, 0, done.output)
  // 3 is the directory that ls itself reads
  assert.deepEqual(done.output.trim().split('\n').sort(), ['0', '1', '2', '3'])
})

test('where the kernel refuses close_range the child still has no other descriptors', async (t) => {
  if (!requires(t, 'program:python3')) return
  const addon = new URL('../../../build/Release/virstream.node', import.meta.url).pathname
  const filter = new URL('../../../test/native/without-close-range.py', import.meta.url).pathname
  const script = `
    const native = require(process.argv[1])
    const fds = [0, 1, 2].map((fd) => ({ source: fd, target: fd }))
    native.spawn({ file: '/bin/ls', args: ['ls', '/proc/self/fd'], env: {}, fds })`
  const file = openSync('/dev/null', 'r')
  t.after(() => closeSync(file))
  const python = findProgram('python3') ?? ''
  const done = await run(t, python, [filter, process.execPath, '-e', script, addon], {
    fds: [{ source: file, target: 77 }],
  })
  assert.deepEqual(done.output.trim().split('\n').sort(), ['0', '1', '2', '3'])
})

test('umask, working directory and session are the asked ones', async (t) => {
  const directory = scratch(t)
  const script = 'umask; pwd; cut -d" " -f1,6 /proc/$$/stat'
  const done = await run(t, sh, ['-c', script], { umask: 0o027, cwd: directory, newSession: true })
  const [umask, cwd, stat = ''] = done.output.trim().split('\n')
  assert.equal(umask, '0027')
  assert.equal(cwd, directory)
  const [pid, session] = stat.split(' ')
  assert.equal(session, pid, 'it leads a session of its own')
})

test('signals that we ignore or block are reset in the child', async (t) => {
  const listener = (): void => undefined
  process.on('SIGUSR2', listener)
  t.after(() => process.off('SIGUSR2', listener))
  const done = await run(t, sh, ['-c', 'grep -E "^Sig(Blk|Ign)" /proc/self/status'])
  assert.match(done.output, /SigBlk:\s+0{16}\nSigIgn:\s+0{16}\n/)
})

test('another user, group and supplementary groups', async (t) => {
  if (!requires(t, 'root')) return
  const script = 'grep -E "^(Uid|Gid|Groups)" /proc/$$/status | tr -s "\\t " " "'
  const done = await run(t, sh, ['-c', script], { uid: 12345, gid: 23456, groups: [34567, 45678] })
  assert.deepEqual(
    done.output
      .trim()
      .split('\n')
      .map((line) => line.trim()),
    ['Uid: 12345 12345 12345 12345', 'Gid: 23456 23456 23456 23456', 'Groups: 34567 45678'],
  )
  const bare = await run(t, sh, ['-c', script], { uid: 12345, gid: 23456 })
  assert.match(bare.output, /Groups:\s*$/, 'no group of ours remains')
})

test('the working directory is entered as the user that the program runs as', (t) => {
  if (!requires(t, 'root')) return
  const cwd = join(scratch(t), 'private')
  mkdirSync(cwd, { mode: 0o700 })
  assert.throws(() => native.spawn({ ...plain, cwd, uid: 12345, gid: 12345 }), { code: 'EACCES', path: cwd })
})

test('a user that may not change its identity is told which call failed', async (t) => {
  const addon = new URL('../../../build/Release/virstream.node', import.meta.url).pathname
  const script = `
    const native = require(process.argv[1])
    const fds = [0, 1, 2].map((fd) => ({ source: fd, target: fd }))
    try { native.spawn({ file: '/bin/true', args: ['true'], env: {}, fds, gid: 0, uid: 0 }) }
    catch (error) { console.log(error.code, error.syscall) }`
  const asRoot = process.getuid?.() === 0
  const directory = scratch(t)
  const copy = join(directory, 'virstream.node')
  writeFileSync(copy, readFileSync(addon))
  if (asRoot) native.spawn({ ...plain, file: '/bin/chmod', args: ['chmod', '-R', 'a+rX', directory] })
  const done = await run(t, process.execPath, ['-e', script, copy], asRoot ? { uid: 12345, gid: 12345, cwd: '/' } : {})
  assert.equal(done.output.trim(), 'EPERM spawn setgroups')
})

test('a label that no security module takes is refused with the file that it was to go to', () => {
  const failsWith = (options: Partial<SpawnOptions>, path: string): void => {
    assert.throws(
      () => native.spawn({ ...plain, ...options }),
      (error: NodeJS.ErrnoException) => error.syscall === 'spawn write' && error.path === path && error.errno !== 0,
    )
  }
  failsWith({ selinuxLabel: 'no_such_u:no_such_r:no_such_t:s0' }, '/proc/thread-self/attr/exec')
  failsWith({ apparmorProfile: 'no-such-profile' }, '/proc/thread-self/attr/apparmor/exec')
})

test('1000 children leave no descriptor and no zombie behind', async () => {
  await exitOf(native.spawn(plain))
  await delay(50) // handles close at the end of a turn of the event loop
  const before = openFds()
  for (let round = 0; round < 50; round++) {
    const pids = Array.from({ length: 20 }, () => native.spawn(plain))
    const exits = await Promise.all(pids.map(exitOf))
    assert.ok(exits.every((exit) => exit.code === 7))
    assert.throws(() => process.kill(pids[0] ?? 0, 0), { code: 'ESRCH' })
  }
  for (let round = 0; round < 100; round++) {
    assert.throws(() => native.spawn({ ...plain, file: '/nonexistent' }), { code: 'ENOENT' })
  }
  await assertNoMoreFds(before)
})
