/** Definitions, transient domains and what can be asked. */
import assert from 'node:assert/strict'
import * as c from '../../src/index.js'
import { define, eventsUntil, refused, sequence } from './support.js'
import type { Each } from './support.js'

export function definitions(each: Each): void {
  each('a domain that is defined is found by name and UUID, is not active, persistent and shut off', async (opened) => {
    const { conn } = opened
    const dom = await define(opened)
    assert.equal(dom.id, -1)
    assert.equal((await conn.domainLookupByName(dom.name)).uuid, dom.uuid)
    assert.equal((await conn.domainLookupByUUIDString(dom.uuid.toUpperCase())).name, dom.name)
    assert.equal(await dom.isActive(), false)
    assert.equal(await dom.isPersistent(), true)
    assert.equal((await dom.getState()).state, c.VIR_DOMAIN_SHUTOFF)
    assert.match(await dom.getXMLDesc(), new RegExp(`<uuid>${dom.uuid}</uuid>`))
  })

  each('defining it again changes the definition, and each is told as an event', async (opened) => {
    const { conn, newDomainXml } = opened
    const all = conn.domainEvents({ kinds: ['lifecycle'] })
    const xml = await newDomainXml()
    const dom = await conn.domainDefineXML(xml)
    await conn.domainDefineXML(xml.replace('</name>', '</name><title>second</title>'))
    assert.match(await dom.getXMLDesc(), /<title>second<\/title>/)
    await dom.undefine()
    const heard = await eventsUntil(all, [c.VIR_DOMAIN_EVENT_UNDEFINED, c.VIR_DOMAIN_EVENT_UNDEFINED_REMOVED])
    assert.deepEqual(
      heard,
      sequence(
        [c.VIR_DOMAIN_EVENT_DEFINED, c.VIR_DOMAIN_EVENT_DEFINED_ADDED],
        [c.VIR_DOMAIN_EVENT_DEFINED, c.VIR_DOMAIN_EVENT_DEFINED_UPDATED],
        [c.VIR_DOMAIN_EVENT_UNDEFINED, c.VIR_DOMAIN_EVENT_UNDEFINED_REMOVED],
      ),
    )
  })

  each('a name of another UUID, and a UUID of another name, are refused', async ({ conn, newDomainXml }) => {
    const [one, two] = [await newDomainXml(), await newDomainXml()]
    const name = /<name>.*<\/name>/
    const uuid = /<uuid>.*<\/uuid>/
    await conn.domainDefineXML(one)
    const sameName = two.replace(name, one.match(name)?.[0] ?? '')
    await refused(conn.domainDefineXML(sameName), 'VIR_ERR_OPERATION_FAILED', /already exists with uuid/)
    const sameUuid = two.replace(uuid, one.match(uuid)?.[0] ?? '')
    await refused(conn.domainDefineXML(sameUuid), 'VIR_ERR_OPERATION_FAILED', /already defined with uuid/)
  })

  each('a domain that is undefined is gone, and every handle says so', async (opened) => {
    const dom = await define(opened)
    await dom.undefine()
    await refused(dom.getState(), 'VIR_ERR_NO_DOMAIN')
    await refused(dom.create(), 'VIR_ERR_NO_DOMAIN')
    await refused(opened.conn.domainLookupByName(dom.name), 'VIR_ERR_NO_DOMAIN', new RegExp(`'${dom.name}'`))
    await refused(opened.conn.domainLookupByUUIDString(dom.uuid), 'VIR_ERR_NO_DOMAIN')
  })

  each('XML that is broken, or is no domain, is refused', async ({ conn }) => {
    await refused(conn.domainDefineXML('<domain'), 'VIR_ERR_XML_DETAIL')
    await refused(conn.domainDefineXML('<network/>'), 'VIR_ERR_XML_ERROR')
    await refused(conn.domainCreateXML('<domain/>'), 'VIR_ERR_NO_NAME')
  })

  each('autostart is kept and shown', async (opened) => {
    const dom = await define(opened)
    assert.equal(await dom.getAutostart(), false)
    await dom.setAutostart(true)
    assert.equal(await dom.getAutostart(), true)
    const names = (await opened.conn.listAllDomains(c.VIR_CONNECT_LIST_DOMAINS_AUTOSTART)).map((d) => d.name)
    assert.ok(names.includes(dom.name))
    await dom.setAutostart(false)
    assert.equal(await dom.getAutostart(), false)
  })

  each('the list is narrowed by flags', async (opened) => {
    const { conn } = opened
    const off = await define(opened)
    const on = await define(opened)
    await on.create(c.VIR_DOMAIN_START_PAUSED)
    const listed = async (flags: number): Promise<string[]> =>
      (await conn.listAllDomains(flags)).map(({ name }) => name).filter((name) => [off.name, on.name].includes(name))
    assert.deepEqual((await listed(0)).toSorted(), [off.name, on.name].toSorted())
    assert.deepEqual(await listed(c.VIR_CONNECT_LIST_DOMAINS_ACTIVE), [on.name])
    assert.deepEqual(await listed(c.VIR_CONNECT_LIST_DOMAINS_INACTIVE), [off.name])
    assert.deepEqual(await listed(c.VIR_CONNECT_LIST_DOMAINS_PAUSED), [on.name])
    assert.deepEqual(await listed(c.VIR_CONNECT_LIST_DOMAINS_SHUTOFF), [off.name])
    assert.deepEqual(await listed(c.VIR_CONNECT_LIST_DOMAINS_TRANSIENT), [])
    assert.deepEqual(
      await listed(c.VIR_CONNECT_LIST_DOMAINS_PAUSED | c.VIR_CONNECT_LIST_DOMAINS_INACTIVE),
      [],
      'groups of flags narrow each other',
    )
    await on.destroy()
  })
}

export function transients(each: Each): void {
  each('a transient domain is gone when it stops', async ({ conn, newDomainXml }) => {
    const dom = await conn.domainCreateXML(await newDomainXml(), c.VIR_DOMAIN_START_PAUSED)
    assert.equal(await dom.isPersistent(), false)
    assert.equal(await dom.isActive(), true)
    await refused(dom.undefine(), 'VIR_ERR_OPERATION_INVALID', /transient/)
    await refused(dom.setAutostart(true), 'VIR_ERR_OPERATION_INVALID', /transient/)
    await dom.destroy()
    await refused(dom.getState(), 'VIR_ERR_NO_DOMAIN')
  })

  each('a running domain that is undefined becomes transient, and persistent by being defined', async (opened) => {
    const { conn } = opened
    const xml = await opened.newDomainXml()
    const dom = await conn.domainDefineXML(xml)
    await dom.create(c.VIR_DOMAIN_START_PAUSED)
    await dom.undefine()
    assert.equal(await dom.isPersistent(), false)
    assert.equal(await dom.isActive(), true)
    await conn.domainDefineXML(xml)
    assert.equal(await dom.isPersistent(), true)
    await dom.destroy()
    assert.equal((await dom.getState()).state, c.VIR_DOMAIN_SHUTOFF)
  })

  each('a domain that runs cannot be created from XML a second time', async (opened) => {
    const xml = await opened.newDomainXml()
    const dom = await opened.conn.domainCreateXML(xml, c.VIR_DOMAIN_START_PAUSED)
    await refused(opened.conn.domainCreateXML(xml), 'VIR_ERR_OPERATION_INVALID', /already active/)
    await dom.destroy()
  })
}

export function inspection(each: Each): void {
  each('a connection tells its hypervisor, host and capabilities', async ({ conn }) => {
    assert.match(await conn.getType(), /^[A-Z]+$/)
    assert.ok((await conn.getHostname()).length > 0)
    assert.ok((await conn.getVersion()) > 0)
    assert.match(await conn.getCapabilities(), /^<capabilities>[^]*<arch>x86_64<\/arch>/)
  })

  each('memory is told in KiB, and CPU time only while it runs', async (opened) => {
    const dom = await define(opened)
    const off = await dom.getInfo()
    assert.equal(off.cpuTime, 0)
    assert.ok(off.maxMem >= 16 * 1024)
    await dom.create()
    const on = await dom.getInfo()
    assert.equal(on.state, c.VIR_DOMAIN_RUNNING)
    assert.ok(on.cpuTime > 0)
    assert.equal(on.maxMem, off.maxMem)
    await dom.destroy()
  })

  each(
    'the sizes of a disk are told while it runs and while it does not, its statistics only while it runs',
    async (opened) => {
      const dom = await define(opened, 'thin')
      const off = await dom.blockInfo('vda')
      await dom.create(c.VIR_DOMAIN_START_PAUSED)
      const on = await dom.blockInfo('virtio-disk0')
      assert.ok(off.capacity > 0)
      assert.equal(on.capacity, off.capacity)
      const stats = await dom.blockStats('vda')
      for (const value of Object.values(stats)) assert.ok(Number.isSafeInteger(value) && value >= 0)
      await refused(dom.blockInfo('vdz'), 'VIR_ERR_INVALID_ARG', /invalid path 'vdz'/)
      await refused(dom.blockInfo('sda'), 'VIR_ERR_INVALID_ARG', /no medium|source assigned/)
      await dom.destroy()
    },
  )

  each('the console of a running domain is a stream of bytes, one that is not there is refused', async (opened) => {
    const dom = await define(opened)
    await dom.create(c.VIR_DOMAIN_START_PAUSED)
    const console = await dom.openConsole()
    assert.equal(console.writable, true)
    const closed = new Promise((resolve) => console.once('close', resolve))
    console.destroy()
    await closed
    await refused(dom.openConsole('serial9'), 'VIR_ERR_INTERNAL_ERROR', /serial9/)
    await dom.destroy()
  })
}
