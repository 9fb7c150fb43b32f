import assert from 'node:assert/strict'
import { existsSync, readdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import type { Lease } from '../../src/index.js'
import { ofdLocks } from '../../src/locking/ofd.js'
import { native } from '../../src/native.js'
import { virError } from '../support/domain.js'
import { temporaryFolder } from '../support/images.js'
import { exclusive, readOnly, shared, startHolding } from './support.js'

const busy = (name: string): object =>
  virError('VIR_ERR_RESOURCE_BUSY', new RegExp(`image '/i' is in use by domain '${name}'`))

test('the lock lives in the process that inherits it, and ends with it', async (t) => {
  const directory = await temporaryFolder(t)
  const [here, there] = [ofdLocks({ directory }), ofdLocks({ directory })]
  const first = await startHolding(t, here, 'first', [exclusive('/i'), exclusive('/j')])
  assert.equal(await there.inquire(first.leases[0] as Lease), true)
  await assert.rejects(startHolding(t, there, 'second', [exclusive('/k'), exclusive('/i')]), busy('first'))
  // of what was refused nothing is held
  await (await startHolding(t, here, 'third', [exclusive('/k')])).kill()

  await first.kill()
  assert.equal(await there.inquire(first.leases[0] as Lease), false)
  const second = await startHolding(t, there, 'second', [exclusive('/i')])
  await assert.rejects(startHolding(t, here, 'first', [exclusive('/i')]), busy('second'))
  await here.release(first.leases[0] as Lease)
  assert.equal(await here.inquire(second.leases[0] as Lease), true, 'a lease that is gone takes nothing along')
})

test('shared locks go together, an exclusive one with none, and who only reads needs none', async (t) => {
  const locks = ofdLocks({ directory: await temporaryFolder(t) })
  const readers = [await startHolding(t, locks, 'a', [shared('/i')]), await startHolding(t, locks, 'b', [shared('/i')])]
  await assert.rejects(
    startHolding(t, locks, 'c', [exclusive('/i')]),
    virError('VIR_ERR_RESOURCE_BUSY', /in use by domain 'a' \(process \d+ on host '.+'\), domain 'b' \(process/),
  )
  await readers[0]?.kill()
  await assert.rejects(startHolding(t, locks, 'c', [exclusive('/i')]), busy('b'))
  await readers[1]?.kill()
  const writer = await startHolding(t, locks, 'c', [exclusive('/i')])
  await assert.rejects(startHolding(t, locks, 'd', [shared('/i')]), busy('c'))
  const reader = await startHolding(t, locks, 'e', [readOnly('/i')])
  assert.equal(await locks.inquire(reader.leases[0] as Lease), true)
  assert.equal(await locks.release(writer.leases[0] as Lease), undefined)
  await startHolding(t, locks, 'd', [shared('/i')])
})

test('a lease is plain data, and any process can give it back while the holder lives', async (t) => {
  const directory = await temporaryFolder(t)
  const { leases } = await startHolding(t, ofdLocks({ directory }), 'first', [exclusive('/i')])
  const lease = JSON.parse(JSON.stringify(leases[0])) as Lease
  const other = ofdLocks({ directory })
  await other.release(lease)
  assert.equal(await other.inquire(lease), false)
  await other.release(lease)
  await startHolding(t, other, 'second', [exclusive('/i')])
})

test('a process that runs already gets its locks through a helper that ends with it', async (t) => {
  const locks = ofdLocks({ directory: await temporaryFolder(t) })
  const { owner, kill } = await startHolding(t, locks, 'first', [])
  const lease = await locks.acquire(owner, [exclusive('/i')])
  const { pid, helper } = JSON.parse(lease.data ?? '') as { pid: number; helper: boolean }
  assert.equal(helper, true)
  await assert.rejects(startHolding(t, locks, 'second', [exclusive('/i')]), busy('first'))
  await locks.release(lease)
  assert.equal(existsSync(`/proc/${pid}`), false)
  assert.equal(await locks.inquire(lease), false)

  const again = await locks.acquire(owner, [exclusive('/i')])
  await assert.rejects(startHolding(t, locks, 'second', [exclusive('/i')]), busy('first'))
  await delay(500) // it is up and watches
  await kill()
  assert.equal(await locks.inquire(again), false)
  const { pid: second } = JSON.parse(again.data ?? '') as { pid: number }
  for (let tries = 0; tries < 500 && existsSync(`/proc/${second}`); tries++) await delay(10)
  await startHolding(t, locks, 'second', [exclusive('/i')])
})

test('the death of the process that started it does not free the lock', async (t) => {
  const directory = await temporaryFolder(t)
  const note = join(directory, 'note')
  const support = fileURLToPath(new URL('./support.js', import.meta.url))
  const driver = fileURLToPath(new URL('../../src/locking/ofd.js', import.meta.url))
  const script = `import { startHolding, exclusive } from '${support}'; import { ofdLocks } from '${driver}'
    import { writeFileSync } from 'node:fs'
    const { owner } = await startHolding({ after() {} }, ofdLocks({ directory: '${directory}' }), 'first', [exclusive('/i')])
    writeFileSync('${note}', String(owner.pid)); process.kill(process.pid, 'SIGKILL')`
  const parent = native.spawn({
    file: process.execPath,
    args: ['node', '--input-type=module', '-e', script],
    env: {},
    fds: [0, 1, 2].map((fd) => ({ source: fd, target: fd })),
  })
  await new Promise((resolve) => native.watchProcess(parent, resolve))
  const pid = Number(readFileSync(note, 'utf8'))
  try {
    await assert.rejects(startHolding(t, ofdLocks({ directory }), 'second', [exclusive('/i')]), busy('first'))
  } finally {
    process.kill(pid, 'SIGKILL')
  }
  while (existsSync(`/proc/${pid}/fd/0`)) await delay(5)
  await startHolding(t, ofdLocks({ directory }), 'second', [exclusive('/i')])
})

test('a directory that cannot be is said before anything starts; a lock file that was replaced is no lock', async (t) => {
  const folder = await temporaryFolder(t)
  assert.throws(() => ofdLocks({ directory: 'locks' }), virError('VIR_ERR_INVALID_ARG', /absolute path, not 'locks'/))
  writeFileSync(join(folder, 'file'), '')
  assert.match((await ofdLocks({ directory: join(folder, 'file/x') }).probe?.()) ?? '', /cannot make/)

  const locks = ofdLocks({ directory: join(folder, 'locks') })
  assert.equal(await locks.probe?.(), undefined)
  const holder = await locks.hold?.([exclusive('/i')])
  assert.ok(holder !== undefined)
  const [name = ''] = readdirSync(join(folder, 'locks'))
  renameSync(join(folder, 'locks', name), join(folder, 'moved'))
  writeFileSync(join(folder, 'locks', name), '')
  const owner = { name: 'a', uuid: '', id: 1, pid: process.pid }
  await assert.rejects(
    locks.acquire(owner, [exclusive('/i')], undefined, holder),
    virError('VIR_ERR_SYSTEM_ERROR', /it was replaced/),
  )
  holder.close()
})
