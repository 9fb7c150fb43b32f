/** Mirrors that the guest's own writes go through, which QEMU may only be told to leave while the guest stands still. */
import assert from 'node:assert/strict'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import * as c from '../../src/index.js'
import { diskXml, lifecycleOf, qemuPid, recordEvents, reopen, runDirOf } from '../support/domain.js'
import { startPlain, testRoot, until } from '../support/domain.js'
import { emptyImage } from '../support/images.js'
import { requires } from '../support/requires.js'
import { moveGuest } from '../support/move.js'
import { assertRight } from '../support/streamed.js'

const MiB = 1024 * 1024

/** QEMU ends at once when it uses what it has freed: glibc keeps no freed memory apart, where that would go unnoticed. */
const strict = `<commandline xmlns='http://libvirt.org/schemas/domain/qemu/1.0'>
  <env name='GLIBC_TUNABLES' value='glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0'/>
</commandline>`

test('a stream into a raw image is stopped while the guest writes, over and over, and the guest goes on', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const change = (xml: string): string => xml.replace("type='qcow2'", "type='raw'")
  const { here, there, moved, guest } = await moveGuest(t, {
    ...{ size: 32 * MiB, bandwidth: 256 * 1024, extra: strict, change },
  })
  await guest.base('vda', here.seed, here.size)
  const pid = qemuPid(there, moved)
  await guest.work('vda', 'writes')
  const events = recordEvents(there.conn)
  for (let times = 1; times <= 3; times++) {
    const { writes } = await guest.stat()
    await until('it writes', async () => (await guest.stat()).writes > writes + 5)
    await moved.blockJobAbort('vda')
    await moved.streamDisk('vda', 0, c.VIR_STREAM_DISK_START, { bandwidth: 256 * 1024 })
  }
  assert.equal(qemuPid(there, moved), pid)
  const once = [
    `${c.VIR_DOMAIN_EVENT_SUSPENDED}/${c.VIR_DOMAIN_EVENT_SUSPENDED_MIGRATED}`,
    `${c.VIR_DOMAIN_EVENT_RESUMED}/${c.VIR_DOMAIN_EVENT_RESUMED_UNPAUSED}`,
  ]
  assert.deepEqual(lifecycleOf(events), [...once, ...once, ...once])
  await assertRight(guest)
})

test('a guest that a process halted for a moment, and was killed, is let run by the next one', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const root = await testRoot(t)
  const dom = await startPlain(root, { devices: diskXml('vda', await emptyImage(root.folder, 'qcow2', MiB)) })
  const file = join(runDirOf(root, dom), 'status.json')
  await reopen(root)
  const paused = await root.conn.domainLookupByName('guest')
  assert.equal((await paused.getState()).state, c.VIR_DOMAIN_PAUSED)
  await root.conn.close()
  // as it is written down before QEMU is told
  const status = JSON.parse(readFileSync(file, 'utf8')) as object
  writeFileSync(file, JSON.stringify({ ...status, halted: true }))
  root.conn = await c.Connect.open(root.uri, root.options)
  const again = await root.conn.domainLookupByName('guest')
  assert.equal((await again.getState()).state, c.VIR_DOMAIN_RUNNING)
  assert.doesNotMatch(readFileSync(file, 'utf8'), /halted/)
  await again.destroy()
})
