/** The names that programs are written against: libvirt's without `virConnect` and `virDomain`, and those of streams. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import * as vs from '../../src/index.js'

const connect = `getURI getType getHostname getVersion getLibVersion getCapabilities getDomainCapabilities listAllDomains
  domainLookupByName domainLookupByUUIDString domainLookupByID domainDefineXML domainCreateXML domainEvents close`

const domain = `name uuid id getXMLDesc getState getInfo isActive create destroy shutdown reboot reset suspend resume undefine
  setAutostart attachDevice detachDevice updateDevice blockInfo blockStats blockResize blockPull blockRebase blockCommit
  blockJobInfo blockJobAbort blockJobSetSpeed migrate abortJob getJobStats qemuMonitorCommand openConsole
  streamDisk streamDiskInfo stream`

const stream = 'info stop setBandwidth'

const exported = `Connect Domain DiskStream VirError virDomainStreamDisk virDomainStreamDiskInfo VIR_STREAM_DISK_ONE
  VIR_STREAM_DISK_START VIR_STREAM_DISK_STOP VIR_STREAM_DISK_CANCEL VIR_MIGRATE_STREAM_DISKS VIR_DOMAIN_RUNNING`

const missing = (names: string, from: object): string[] => names.split(/\s+/).filter((name) => !(name in from))

test('every name that is promised is there', () => {
  assert.deepEqual(missing(connect, vs.Connect.prototype), [])
  assert.deepEqual(missing(domain, vs.Domain.prototype), [])
  assert.deepEqual(missing(stream, vs.DiskStream.prototype), [])
  assert.deepEqual(missing(exported, vs), [])
})

test('numbers of flags of our own are those that were promised', () => {
  assert.deepEqual(
    [vs.VIR_STREAM_DISK_ONE, vs.VIR_STREAM_DISK_START, vs.VIR_STREAM_DISK_STOP, vs.VIR_STREAM_DISK_CANCEL],
    [1, 2, 4, 4],
  )
  assert.equal(vs.VIR_MIGRATE_STREAM_DISKS, 1 << 30)
})
