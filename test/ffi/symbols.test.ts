/** What is bound, held against what the driver table promises and what the installed libvirt has. */
import assert from 'node:assert/strict'
import { existsSync, readFileSync } from 'node:fs'
import { test } from 'node:test'
import koffi from 'koffi'
import pino from 'pino'
import type { HypervisorOps } from '../../src/driver.js'
import { ffiDriver } from '../../src/ffi/driver.js'
import { blocking, immediate, unlisted } from '../../src/ffi/symbols.js'
import type { Kind, Signature } from '../../src/ffi/symbols.js'
import { libvirtIsThere } from './support.js'

const NOT_THERE = 'a libvirtd is no destination: it would want another one as the source'
const OURS = 'libvirt has nothing like it'

/** Operations of the driver table, and the functions of libvirt that do them. */
const operations: Readonly<Partial<Record<keyof HypervisorOps, readonly string[] | { absent: string }>>> = {
  connectClose: ['virConnectClose'],
  connectGetType: ['virConnectGetType'],
  connectGetHostname: ['virConnectGetHostname'],
  connectGetVersion: ['virConnectGetVersion'],
  connectGetLibVersion: ['virConnectGetLibVersion'],
  connectGetCapabilities: ['virConnectGetCapabilities'],
  connectGetDomainCapabilities: ['virConnectGetDomainCapabilities'],
  connectListAllDomains: ['virConnectListAllDomains'],
  domainLookupByName: ['virDomainLookupByName'],
  domainLookupByUUID: ['virDomainLookupByUUIDString'],
  domainLookupByID: ['virDomainLookupByID'],
  domainDefineXML: ['virDomainDefineXMLFlags'],
  domainCreateXML: ['virDomainCreateXML'],
  domainRestore: ['virDomainRestoreFlags', 'virDomainSaveImageGetXMLDesc'],
  domainCreate: ['virDomainCreateWithFlags'],
  domainDestroy: ['virDomainDestroyFlags'],
  domainShutdown: ['virDomainShutdownFlags'],
  domainReboot: ['virDomainReboot'],
  domainReset: ['virDomainReset'],
  domainSuspend: ['virDomainSuspend'],
  domainResume: ['virDomainResume'],
  domainUndefine: ['virDomainUndefineFlags'],
  domainSave: ['virDomainSaveFlags'],
  domainManagedSave: ['virDomainManagedSave'],
  domainHasManagedSaveImage: ['virDomainHasManagedSaveImage'],
  domainManagedSaveRemove: ['virDomainManagedSaveRemove'],
  domainSetAutostart: ['virDomainSetAutostart'],
  domainGetAutostart: ['virDomainGetAutostart'],
  domainGetXMLDesc: ['virDomainGetXMLDesc'],
  domainGetState: ['virDomainGetState'],
  domainGetInfo: ['virDomainGetInfo'],
  domainIsActive: ['virDomainIsActive'],
  domainIsPersistent: ['virDomainIsPersistent'],
  domainGetBlockInfo: ['virDomainGetBlockInfo'],
  domainBlockStats: ['virDomainBlockStatsFlags'],
  domainBlockResize: ['virDomainBlockResize'],
  domainBlockPull: ['virDomainBlockPull'],
  domainBlockRebase: ['virDomainBlockRebase'],
  domainBlockCommit: ['virDomainBlockCommit'],
  domainGetBlockJobInfo: ['virDomainGetBlockJobInfo'],
  domainBlockJobAbort: ['virDomainBlockJobAbort'],
  domainBlockJobSetSpeed: ['virDomainBlockJobSetSpeed'],
  domainStreamDisk: ['virDomainBlockPull', 'virDomainBlockRebase', 'virDomainQemuMonitorCommandWithFiles'],
  domainStreamDiskInfo: ['virDomainGetBlockJobInfo'],
  domainAbortJob: ['virDomainAbortJob', 'virDomainAbortJobFlags'],
  domainGetJobStats: ['virDomainGetJobStats'],
  domainMigrateStartPostCopy: ['virDomainMigrateStartPostCopy'],
  domainMigrateSetMaxDowntime: ['virDomainMigrateSetMaxDowntime'],
  domainMigrateGetMaxDowntime: ['virDomainMigrateGetMaxDowntime'],
  domainMigrateSetMaxSpeed: ['virDomainMigrateSetMaxSpeed'],
  domainMigrateGetMaxSpeed: ['virDomainMigrateGetMaxSpeed'],
  domainMigrateSetCompressionCache: ['virDomainMigrateSetCompressionCache'],
  domainMigrateGetCompressionCache: ['virDomainMigrateGetCompressionCache'],
  domainMigrateBegin: ['virDomainMigrateBegin3Params'],
  domainMigratePrepare: { absent: NOT_THERE },
  domainMigratePerform: ['virDomainMigratePerform3Params'],
  domainMigrateFinish: { absent: NOT_THERE },
  domainMigrateConfirm: ['virDomainMigrateConfirm3Params'],
  migrationChannel: { absent: OURS },
  connectTunnel: { absent: OURS },
  domainStreamDiskSetBase: { absent: OURS },
  domainAttachDevice: ['virDomainAttachDeviceFlags'],
  domainUpdateDevice: ['virDomainUpdateDeviceFlags'],
  domainDetachDevice: ['virDomainDetachDeviceFlags'],
  qemuMonitorCommand: ['virDomainQemuMonitorCommand'],
  domainOpenConsole: ['virDomainOpenConsole'],
}

const all: Readonly<Record<string, Signature>> = { ...blocking, ...immediate }

test('every function that is bound is in the installed libvirt', (t) => {
  if (!libvirtIsThere(t)) return
  for (const [name, { library }] of Object.entries(all))
    assert.doesNotThrow(() => koffi.load(library).symbol(name), `${library} has no ${name}`)
})

/** C types of libvirt's headers, as the kinds of arguments that they are. */
function kindOf(type: string): Kind {
  if (
    /\bvoid\s*\*$|Callback$|Func$|FreeFunc|Ptr$|^vir\w+Callback/.test(type) &&
    !/(Info|Params?|Parameter|Auth)Ptr$/.test(type)
  )
    return 'address'
  if (/^const char\s*\*$/.test(type)) return 'text'
  if (/\*|Ptr$/.test(type)) return 'bytes'
  if (/long|size_t/.test(type)) return 'ulong'
  return type.startsWith('unsigned') ? 'uint' : 'int'
}

test("signatures are those of libvirt's headers", (t) => {
  const headers = [
    'libvirt-domain.h',
    'libvirt-host.h',
    'libvirt-stream.h',
    'libvirt-qemu.h',
    'virterror.h',
    'libvirt-event.h',
    'libvirt-common.h',
  ]
  const folder = '/usr/include/libvirt'
  if (!existsSync(folder)) {
    t.skip('needs the file /usr/include/libvirt')
    return
  }
  const text = headers
    .map((file) => readFileSync(`${folder}/${file}`, 'utf8'))
    .join('\n')
    .replace(/\/\*[\s\S]*?\*\//g, '')
  for (const [name, { args, answers }] of Object.entries(all)) {
    if (name in unlisted) continue // which test/ffi/migrate.test.ts calls
    const found = new RegExp(`^([\\w][\\w \\t*]*?)\\s*\\b${name}\\s*\\(([^;]*?)\\)(?:\\s*G_GNUC\\w+)?;`, 'm').exec(text)
    assert.ok(found, name)
    const [, result = '', list = ''] = found
    const params = list.trim() === 'void' ? [] : list.split(',').map((param) => param.replace(/\s+/g, ' ').trim())
    assert.equal(params.length, args.length, `${name} takes ${params.length} arguments`)
    if (result.includes('*') || /Ptr/.test(result)) assert.equal(answers, 'address', name)
    else assert.equal(answers, 'int', name)
    for (const [at, param] of params.entries()) {
      const [, type = '', stars = ''] = /^(.*?)([ *]*)\w+$/.exec(param) ?? []
      const kind = kindOf(`${type.trim()}${stars.replaceAll(' ', '')}`.replace(/(\w)\*/, '$1 *'))
      const given = args[at]
      // an address that we only hand on may be given as one whatever it points to; fds and buffers are bytes
      const same =
        kind === given || (kind === 'bytes' && given === 'address') || (kind === 'address' && given === 'bytes')
      assert.ok(
        same || (kind === 'text' && given === 'bytes'),
        `${name}: '${param}' is ${kind}, not ${given ?? 'there'}`,
      )
    }
  }
})

test('the driver has every operation of the table that libvirt has, by functions that are bound', async (t) => {
  if (!libvirtIsThere(t)) return
  const ops = await ffiDriver.open(new URL('test:///default'), {
    logger: pino({ enabled: false }),
    readOnly: false,
    emit: () => undefined,
  })
  assert.ok(ops)
  t.after(() => ops.connectClose?.())
  const source = readFileSync(new URL('../../../src/driver.ts', import.meta.url), 'utf8')
  const table = /interface HypervisorOps \{([^]*?)\n\}/.exec(source)?.[1] ?? ''
  const promised = [...table.matchAll(/^ {2}(\w+)\(/gm)].map(([, name = '']) => name)
  assert.deepEqual(
    promised.filter((name) => !(name in operations)),
    [],
    'what libvirt has of these is to be said above',
  )
  for (const [operation, how] of Object.entries(operations)) {
    if ('absent' in how) assert.equal(operation in ops, false, operation)
    else {
      assert.equal(typeof ops[operation as keyof HypervisorOps], 'function', operation)
      for (const name of how) assert.ok(name in blocking, `${operation} needs ${name}`)
    }
  }
  assert.deepEqual(
    Object.keys(ops).filter((name) => !(name in operations)),
    [],
  )
})
