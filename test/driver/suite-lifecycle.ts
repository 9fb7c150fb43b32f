/** States, reasons, events, saved states and wrong calls. */
import assert from 'node:assert/strict'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import * as c from '../../src/index.js'
import { define, listen, paused, refused, running, sequence, shutOff, until } from './support.js'
import type { Each } from './support.js'

export function lifecycle(each: Each, guestReacts: boolean): void {
  each('start, suspend, resume, destroy: states, reasons and events are those of libvirt', async (opened) => {
    const dom = await define(opened)
    const heard = listen(opened, dom)
    await dom.create()
    assert.deepEqual(await dom.getState(), running(c.VIR_DOMAIN_RUNNING_BOOTED))
    assert.ok(dom.id > 0)
    assert.equal((await opened.conn.domainLookupByID(dom.id)).uuid, dom.uuid)
    await dom.suspend()
    assert.deepEqual(await dom.getState(), paused)
    await dom.resume()
    assert.deepEqual(await dom.getState(), running(c.VIR_DOMAIN_RUNNING_UNPAUSED))
    await dom.destroy()
    assert.deepEqual(await dom.getState(), shutOff(c.VIR_DOMAIN_SHUTOFF_DESTROYED))
    assert.deepEqual(
      await heard([c.VIR_DOMAIN_EVENT_STOPPED, c.VIR_DOMAIN_EVENT_STOPPED_DESTROYED]),
      sequence(
        [c.VIR_DOMAIN_EVENT_STARTED, c.VIR_DOMAIN_EVENT_STARTED_BOOTED],
        [c.VIR_DOMAIN_EVENT_SUSPENDED, c.VIR_DOMAIN_EVENT_SUSPENDED_PAUSED],
        [c.VIR_DOMAIN_EVENT_RESUMED, c.VIR_DOMAIN_EVENT_RESUMED_UNPAUSED],
        [c.VIR_DOMAIN_EVENT_STOPPED, c.VIR_DOMAIN_EVENT_STOPPED_DESTROYED],
      ),
    )
  })

  each('a domain that is started paused says so, and can be resumed', async (opened) => {
    const dom = await define(opened)
    const heard = listen(opened, dom)
    await dom.create(c.VIR_DOMAIN_START_PAUSED)
    assert.deepEqual(await dom.getState(), paused)
    await dom.resume()
    assert.equal((await dom.getState()).state, c.VIR_DOMAIN_RUNNING)
    assert.deepEqual(
      await heard([c.VIR_DOMAIN_EVENT_RESUMED, c.VIR_DOMAIN_EVENT_RESUMED_UNPAUSED]),
      sequence(
        [c.VIR_DOMAIN_EVENT_STARTED, c.VIR_DOMAIN_EVENT_STARTED_BOOTED],
        [c.VIR_DOMAIN_EVENT_SUSPENDED, c.VIR_DOMAIN_EVENT_SUSPENDED_PAUSED],
        [c.VIR_DOMAIN_EVENT_RESUMED, c.VIR_DOMAIN_EVENT_RESUMED_UNPAUSED],
      ),
    )
    await dom.destroy()
  })

  each('each run has an id of its own', async (opened) => {
    const dom = await define(opened)
    await dom.create(c.VIR_DOMAIN_START_PAUSED)
    const first = dom.id
    await dom.destroy()
    await dom.create(c.VIR_DOMAIN_START_PAUSED)
    assert.notEqual(dom.id, first)
    await dom.destroy()
  })

  each('suspending twice is nothing, resuming what runs is refused', async (opened) => {
    const dom = await define(opened)
    await dom.create()
    await dom.suspend()
    await dom.suspend()
    assert.deepEqual(await dom.getState(), paused)
    await dom.resume()
    await refused(dom.resume(), 'VIR_ERR_OPERATION_INVALID', /already running/)
    await dom.destroy()
  })

  each('reset and reboot leave the domain running', async (opened) => {
    const dom = await define(opened)
    await dom.create()
    await dom.reset()
    await dom.reboot()
    assert.equal((await dom.getState()).state, c.VIR_DOMAIN_RUNNING)
    await dom.destroy()
  })

  if (guestReacts)
    each('a guest that is asked to goes down, with a reason and its events', async (opened) => {
      const dom = await define(opened)
      await dom.create()
      const events = opened.conn.domainEvents({ domain: dom, kinds: ['lifecycle'] })
      const heard = listen(opened, dom)
      await dom.shutdown()
      await until(events, (event) => event.kind === 'lifecycle' && event.event === c.VIR_DOMAIN_EVENT_STOPPED)
      assert.deepEqual(await dom.getState(), shutOff(c.VIR_DOMAIN_SHUTOFF_SHUTDOWN))
      assert.deepEqual(
        await heard([c.VIR_DOMAIN_EVENT_STOPPED, c.VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN]),
        sequence(
          [c.VIR_DOMAIN_EVENT_SHUTDOWN, c.VIR_DOMAIN_EVENT_SHUTDOWN_GUEST],
          [c.VIR_DOMAIN_EVENT_STOPPED, c.VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN],
        ),
      )
    })
}

export function savedStates(each: Each): void {
  each('a managed saved state stops the domain, and its next start goes on from there', async (opened) => {
    const dom = await define(opened)
    await dom.create()
    assert.equal(await dom.hasManagedSaveImage(), false)
    await dom.managedSave()
    assert.deepEqual(await dom.getState(), shutOff(c.VIR_DOMAIN_SHUTOFF_SAVED))
    assert.equal(await dom.hasManagedSaveImage(), true)
    await refused(dom.undefine(), 'VIR_ERR_OPERATION_INVALID', /managed save image exists/)
    await dom.create()
    assert.deepEqual(await dom.getState(), running(c.VIR_DOMAIN_RUNNING_RESTORED))
    assert.equal(await dom.hasManagedSaveImage(), false)
    await dom.managedSave(c.VIR_DOMAIN_SAVE_PAUSED)
    await dom.create()
    assert.equal((await dom.getState()).state, c.VIR_DOMAIN_PAUSED)
    await dom.managedSave()
    await dom.managedSaveRemove()
    assert.equal(await dom.hasManagedSaveImage(), false)
    await dom.create()
    assert.deepEqual(await dom.getState(), running(c.VIR_DOMAIN_RUNNING_BOOTED))
    await dom.destroy()
  })

  each('a domain that was saved to a file goes on from there, running or paused as is asked', async (opened) => {
    const { conn } = opened
    const folder = await mkdtemp(join(tmpdir(), 'virstream-saved-'))
    const file = join(folder, 'domain.save')
    try {
      const dom = await define(opened)
      const heard = listen(opened, dom)
      await dom.create()
      await dom.save(file)
      assert.deepEqual(await dom.getState(), shutOff(c.VIR_DOMAIN_SHUTOFF_SAVED))
      const again = await conn.domainRestore(file)
      assert.equal(again.uuid, dom.uuid)
      assert.deepEqual(await again.getState(), running(c.VIR_DOMAIN_RUNNING_RESTORED))
      await refused(conn.domainRestore(file), 'VIR_ERR_OPERATION_INVALID', /already active/)
      await again.destroy()
      await conn.domainRestore(file, undefined, c.VIR_DOMAIN_SAVE_PAUSED)
      assert.equal((await dom.getState()).state, c.VIR_DOMAIN_PAUSED)
      await dom.destroy()
      const events = await heard([c.VIR_DOMAIN_EVENT_STOPPED, c.VIR_DOMAIN_EVENT_STOPPED_DESTROYED])
      assert.ok(events.includes(`${c.VIR_DOMAIN_EVENT_STOPPED}/${c.VIR_DOMAIN_EVENT_STOPPED_SAVED}`))
      assert.ok(events.includes(`${c.VIR_DOMAIN_EVENT_STARTED}/${c.VIR_DOMAIN_EVENT_STARTED_RESTORED}`))
    } finally {
      await rm(folder, { recursive: true })
    }
  })

  each('a domain without a definition has no managed saved state', async ({ conn, newDomainXml }) => {
    const dom = await conn.domainCreateXML(await newDomainXml(), c.VIR_DOMAIN_START_PAUSED)
    await refused(dom.managedSave(), 'VIR_ERR_OPERATION_INVALID', /transient/)
    await dom.destroy()
  })
}

export function wrongCalls(each: Each): void {
  each('what needs a running domain is refused on one that is shut off', async (opened) => {
    const dom = await define(opened, 'thin')
    const calls: [string, () => Promise<unknown>][] = [
      ['suspend', () => dom.suspend()],
      ['resume', () => dom.resume()],
      ['reset', () => dom.reset()],
      ['reboot', () => dom.reboot()],
      ['shutdown', () => dom.shutdown()],
      ['destroy', () => dom.destroy()],
      ['managedSave', () => dom.managedSave()],
      ['save', () => dom.save('/nonexistent/file')],
      ['blockStats', () => dom.blockStats('vda')],
      ['openConsole', () => dom.openConsole()],
    ]
    for (const [what, call] of calls)
      await refused(call(), 'VIR_ERR_OPERATION_INVALID', /domain is not running/).catch((error: unknown) => {
        throw new Error(`${what}: ${String(error)}`)
      })
    await refused(dom.blockJobAbort('vda'), 'VIR_ERR_OPERATION_INVALID')
  })

  each('a domain that runs is not started again', async (opened) => {
    const dom = await define(opened)
    await dom.create(c.VIR_DOMAIN_START_PAUSED)
    await refused(dom.create(), 'VIR_ERR_OPERATION_INVALID', /already running/)
    await dom.destroy()
  })

  each('domains that are not there have no name, UUID or id', async ({ conn }) => {
    await refused(conn.domainLookupByName('no such'), 'VIR_ERR_NO_DOMAIN', /'no such'/)
    const uuid = '01234567-89ab-4cde-8f01-23456789abcd'
    await refused(conn.domainLookupByUUIDString(uuid), 'VIR_ERR_NO_DOMAIN', new RegExp(uuid))
    await refused(conn.domainLookupByID(123_456), 'VIR_ERR_NO_DOMAIN', /123456/)
  })

  each('restoring from what is no saved state is refused', async ({ conn }) => {
    await assert.rejects(conn.domainRestore('/nonexistent/file'), { name: 'VirError' })
    await assert.rejects(conn.domainRestore('/etc/hostname'), { name: 'VirError' })
  })
}
