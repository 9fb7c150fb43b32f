import assert from 'node:assert/strict'
import { closeSync, openSync } from 'node:fs'
import { test } from 'node:test'
import { VirError } from '../../src/error.js'
import { QemuCapabilities } from '../../src/machine/capabilities.js'
import { MigrationCommands } from '../../src/qemu/monitor/migration-commands.js'
import { Monitor } from '../../src/qemu/monitor/monitor.js'
import { agreeable } from '../support/agreeable.js'
import { QmpSchema } from '../support/qmp-schema.js'
import { temporaryFolder } from '../support/images.js'
import { findProgram, requires } from '../support/requires.js'

test('every command that the driver sends is one that QEMU takes, by its own schema', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64')) return
  const cacheDir = await temporaryFolder(t)
  const capabilities = await QemuCapabilities.load(findProgram('qemu-system-x86_64') ?? '', { cacheDir })
  const schema = new QmpSchema([...capabilities.schema])
  const { monitor, commands } = await agreeable(t)
  const fd = openSync('/dev/null', 'r')
  t.after(() => closeSync(fd))
  const calls: Record<string, () => Promise<unknown>> = {
    queryStatus: () => monitor.queryStatus(),
    cont: () => monitor.cont(),
    stop: () => monitor.stop(),
    systemPowerdown: () => monitor.systemPowerdown(),
    systemReset: () => monitor.systemReset(),
    quit: () => monitor.quit(),
    setAction: () => monitor.setAction({ shutdown: 'pause', reboot: 'shutdown', panic: 'pause' }),
    balloon: () => monitor.balloon(1 << 20),
    queryBalloon: () => monitor.queryBalloon(),
    queryChardev: () => monitor.queryChardev(),
    setVncPassword: () => monitor.setVncPassword('secret'),
    passThrough: () => monitor.passThrough('query-kvm', undefined),
    humanMonitorCommand: () => monitor.humanMonitorCommand('info block'),
    queryBlock: () => monitor.queryBlock(),
    queryBlockstats: () => monitor.queryBlockstats(),
    queryNodeNames: () => monitor.queryNodeNames(),
    blockdevAdd: () => monitor.blockdevAdd({ driver: 'file', 'node-name': 'n', filename: '/x' }),
    blockdevDel: () => monitor.blockdevDel('n'),
    blockdevReopen: () => monitor.blockdevReopen({ driver: 'qcow2', 'node-name': 'n', file: 'm', backing: null }),
    blockSetIoThrottle: () =>
      monitor.blockSetIoThrottle({ id: 'x', bps: 1, bps_rd: 0, bps_wr: 0, iops: 0, iops_rd: 0, iops_wr: 0 }),
    blockResize: () => monitor.blockResize('n', 4096),
    setLink: () => monitor.setLink('net0', false),
    queryJobs: () => monitor.queryJobs(),
    queryBlockJobs: () => monitor.queryBlockJobs(),
    blockStream: () =>
      monitor.blockStream({
        'job-id': 'stream-vda',
        device: 'node-1-format',
        'base-node': 'node-3-guard',
        'backing-file': '/base',
        speed: 1,
        'on-error': 'enospc',
        'filter-node-name': 'stream-vda',
      }),
    blockCommit: () =>
      monitor.blockCommit({
        'job-id': 'commit-vda',
        device: 'node-1-format',
        'top-node': 'node-2-format',
        'base-node': 'node-3-format',
        'backing-file': '/base',
        speed: 1,
        'on-error': 'report',
        'filter-node-name': 'commit-vda',
      }),
    blockdevOpenTray: () => monitor.blockdevOpenTray('sata0-0-0', true),
    blockdevRemoveMedium: () => monitor.blockdevRemoveMedium('sata0-0-0'),
    blockdevInsertMedium: () => monitor.blockdevInsertMedium('sata0-0-0', 'node-1-format'),
    blockdevCloseTray: () => monitor.blockdevCloseTray('sata0-0-0'),
    flushNode: () => monitor.flushNode('node-1-format').catch(() => undefined),
    jobComplete: () => monitor.jobComplete('j'),
    jobCancel: () => monitor.jobCancel('j'),
    jobFinalize: () => monitor.jobFinalize('j'),
    jobDismiss: () => monitor.jobDismiss('j'),
    blockJobResume: () => monitor.blockJobResume('j'),
    blockJobSetSpeed: () => monitor.blockJobSetSpeed('j', 0),
    nbdServerStart: () => monitor.nbdServerStart(fd),
    blockExportAdd: () => monitor.blockExportAdd('e', 'node-1-format', { iothread: 'iothread1' }),
    blockExportDel: () => monitor.blockExportDel('e'),
    queryBlockExports: () => monitor.queryBlockExports(),
    getfd: () => monitor.getfd('x', fd),
    closefd: () => monitor.closefd('x'),
    run: () => monitor.run('query-kvm', undefined),
  }
  const migration = new MigrationCommands(monitor)
  const migrations: Record<string, () => Promise<unknown>> = {
    setCapabilities: () => migration.setCapabilities({ 'return-path': true }),
    setParameters: () => migration.setParameters({ 'downtime-limit': 300 }),
    setUnlimited: () => migration.setUnlimited(),
    send: () => migration.send(fd),
    receive: () => migration.receive(fd),
    resume: () => migration.resume(fd),
    queryParameters: () => migration.queryParameters(),
    cancel: () => migration.cancel(),
    continueFrom: () => migration.continueFrom('pre-switchover'),
    startPostcopy: () => migration.startPostcopy(),
    query: () => migration.query(),
  }
  const methods = Object.getOwnPropertyNames(Monitor.prototype).filter(
    (name) => !['constructor', 'close', 'isClosed', 'hasAnswered'].includes(name),
  )
  assert.deepEqual(methods.toSorted(), Object.keys(calls).toSorted(), 'each method of the monitor has its line here')
  const named = Object.getOwnPropertyNames(MigrationCommands.prototype).filter((name) => name !== 'constructor')
  assert.deepEqual(named.toSorted(), Object.keys(migrations).toSorted())
  for (const call of Object.values({ ...calls, ...migrations })) await call()
  assert.ok(commands.length > methods.length)
  for (const { execute, arguments: args } of commands)
    assert.deepEqual(schema.checkCommand(execute, args ?? {}), [], execute)
})

test("a lost monitor is told in the domain's terms, to who waits and to who comes later", async (t) => {
  const { monitor, drop } = await agreeable(t)
  const waiting = monitor.passThrough('never', undefined)
  drop()
  const lost = (error: unknown): boolean =>
    error instanceof VirError && error.code === 'VIR_ERR_OPERATION_FAILED' && error.message.includes("'guest'")
  await assert.rejects(waiting, lost)
  await assert.rejects(monitor.queryStatus(), lost)
  assert.ok(monitor.isClosed)
})

test('a monitor that was lost from the beginning refuses every command', async () => {
  const monitor = Monitor.lost('guest')
  assert.ok(monitor.isClosed)
  await assert.rejects(monitor.queryStatus(), /the monitor of domain 'guest' is lost/)
})
