/** The commands of migration, on two daemons in this process whose hypervisors are scripted. */
import assert from 'node:assert/strict'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { PassThrough, Readable, Writable } from 'node:stream'
import { test, type TestContext } from 'node:test'
import { jobLines } from '../../src/cli/job.js'
import { runCli } from '../../src/cli/program.js'
import { migrateFlags, migrateParams } from '../../src/cli/migrate.js'
import { Values } from '../../src/cli/values.js'
import type { DomainJobStats, DomainState, StreamDiskState } from '../../src/driver.js'
import { VirError } from '../../src/error.js'
import * as c from '../../src/index.js'
import { ref, scriptedDriver, type ScriptedDriver } from '../remote/scripted.js'
import { testDaemon, testFolder } from '../remote/support.js'
import { until } from '../support/domain.js'
import { cli, end, says, start } from './run.js'

const MiB = 1024 * 1024
const running = { state: c.VIR_DOMAIN_RUNNING, reason: c.VIR_DOMAIN_RUNNING_BOOTED }
const serving = { state: c.VIR_DOMAIN_PAUSED, reason: c.VIR_DOMAIN_PAUSED_POSTCOPY }
const shutOff = { state: c.VIR_DOMAIN_SHUTOFF, reason: c.VIR_DOMAIN_SHUTOFF_MIGRATED }
const givenUp = { state: c.VIR_DOMAIN_SHUTOFF, reason: c.VIR_DOMAIN_SHUTOFF_DESTROYED }

const job: DomainJobStats = {
  type: c.VIR_DOMAIN_JOB_UNBOUNDED,
  operation: c.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT,
  timeElapsed: 1500,
  dataTotal: 128 * MiB,
  dataProcessed: 96 * MiB,
  dataRemaining: 32 * MiB,
  memTotal: 128 * MiB,
  memProcessed: 96 * MiB,
  memRemaining: 32 * MiB,
  memIteration: 2,
  transport: 'zstd',
  transportBytes: 24 * MiB,
  diskTotal: 0,
  diskProcessed: 0,
  diskRemaining: 0,
  disks: [],
}

const follows = [{ disk: 'vda', offset: 0, size: 64 * MiB }]

const moving = (offset: number): StreamDiskState => ({
  path: 'virtio-disk0',
  offset,
  size: 64 * MiB,
  disk: 'vda',
  mode: 'migration',
  bandwidth: 0,
  status: 'running',
})

interface Hosts {
  source: ScriptedDriver & { uri: string }
  destination: ScriptedDriver & { uri: string }
  state: DomainState
  /** at the destination */
  there: DomainState
  /** the source's daemon ends */
  leave: () => Promise<void>
  /** where the disk is that follows; undefined: it is there; 'unknown': its domain is not there any more */
  disk: number | 'unknown' | undefined
  /** lets the memory arrive */
  arrive: () => void
}

/** A source and a destination; the guest's memory arrives when it is told to. */
async function hosts(t: TestContext): Promise<Hosts> {
  let arrive!: () => void
  let abort!: () => void
  const memory = new Promise<void>((resolve, reject) => {
    arrive = resolve
    abort = () => reject(new VirError('VIR_ERR_OPERATION_ABORTED', 'VIR_FROM_QEMU', 'canceled by client'))
  })
  memory.catch(() => undefined)
  const here = scriptedDriver({
    domainMigrateBegin: () => Promise.resolve({ xml: '<domain/>', cookie: 'begun' }),
    domainMigratePerform: () => memory.then(() => ({ cookie: 'performed' })),
    domainMigrateConfirm: (_ref, _params, _flags, _cookie, cancelled) => {
      if (!cancelled) both.state = serving
      return Promise.resolve()
    },
    domainAbortJob: () => {
      abort()
      both.state = running
      return Promise.resolve()
    },
    domainMigrateStartPostCopy: () => Promise.resolve(),
    domainMigrateSetMaxDowntime: () => Promise.resolve(),
    domainMigrateGetMaxDowntime: () => Promise.resolve(300),
    domainMigrateSetMaxSpeed: () => Promise.resolve(),
    domainMigrateGetMaxSpeed: () => Promise.resolve(7),
    domainMigrateSetCompressionCache: () => Promise.resolve(),
    domainMigrateGetCompressionCache: () => Promise.resolve(64 * MiB),
    domainGetJobStats: () => Promise.resolve(both.state === serving ? { ...job, disks: follows } : job),
    domainGetState: () => Promise.resolve(both.state),
  })
  const there = scriptedDriver({
    domainMigratePrepare: () => Promise.resolve({ cookie: 'prepared', uri: '' }),
    domainMigrateFinish: (_params, _flags, _cookie, cancelled) => Promise.resolve(cancelled ? undefined : ref),
    domainGetState: () => Promise.resolve(both.there),
    domainStreamDiskInfo: () =>
      both.disk === 'unknown'
        ? Promise.reject(new VirError('VIR_ERR_NO_DOMAIN', 'VIR_FROM_QEMU', 'there is no such domain'))
        : Promise.resolve(both.disk === undefined ? [] : [moving(both.disk)]),
  })
  const [source, destination] = [await testDaemon(t, here.driver), await testDaemon(t, there.driver)]
  const both: Hosts = {
    source: { ...here, uri: source.uri },
    destination: { ...there, uri: destination.uri },
    state: running,
    there: running,
    leave: () => source.daemon.close(),
    disk: 16 * MiB,
    arrive,
  }
  return both
}

const named = ({ calls }: ScriptedDriver, name: string): unknown[][] =>
  calls.filter((call) => call.name === name).map(({ args }) => args)

test("virsh's words become libvirt's flags and parameters", async (t) => {
  const folder = await testFolder(t)
  const file = join(folder, 'there.xml')
  await writeFile(file, '<domain type="qemu"/>')
  const words = { live: true, persistent: true, undefinesource: true, suspend: true, p2p: true, tunnelled: true }
  const flags = 1 | 2 | 4 | 8 | 16 | 32
  assert.equal(migrateFlags(new Values(words)), flags)
  assert.equal(migrateFlags(new Values({ streamDisks: true, unsafe: true })), c.VIR_MIGRATE_STREAM_DISKS | 512)
  assert.equal(migrateFlags(new Values({ copyStorageAll: true, postcopy: true })), 64 | 0x8000)
  assert.equal(migrateFlags(new Values({ copyStorageInc: true, offline: true })), 128 | 1024)
  assert.deepEqual(await migrateParams(new Values({})), {})
  assert.deepEqual(
    await migrateParams(
      new Values({
        dname: 'other',
        xml: file,
        bandwidth: '20',
        postcopyBandwidth: '512K',
        diskBandwidth: '3',
        migrateDisks: 'vda, vdb',
        downtime: '50',
        writeBack: true,
        external: true,
        diskEngine: 'pull',
        compMethods: 'xbzrle',
        compXbzrleCache: '2M',
        transport: 'zstd',
      }),
    ),
    {
      destinationName: 'other',
      destinationXML: '<domain type="qemu"/>',
      compression: 'xbzrle',
      compressionXbzrleCache: 2 * MiB,
      transport: 'zstd',
      bandwidth: 20,
      bandwidthPostcopy: 1,
      downtime: 50,
      migrateDisks: ['vda', 'vdb'],
      diskStreamBandwidth: 3 * MiB,
      diskStreamEngine: 'pull',
      writeBack: true,
      serve: 'external',
    },
  )
})

test('words that do not go together are refused before anything is asked', async () => {
  const refused = async (words: string, message: RegExp): Promise<void> => {
    const { status, stderr } = await cli(['migrate', 'test', 'test:///default', ...words.split(' ')])
    assert.equal(status, 1, words)
    assert.match(stderr, message)
  }
  await refused('--stream-disks --copy-storage-all', /mutually exclusive/)
  await refused('--timeout 5', /Unexpected timeout/)
  await refused('--live --timeout-suspend', /--timeout-suspend requires --timeout/)
  await refused('--live --wait', /--wait requires --stream-disks/)
  await refused('--live --persistent-xml x.xml', /--persistent-xml requires --persistent/)
  await refused('--live --write-back', /--write-back requires --stream-disks/)
  await refused('--live --bandwidth fast', /bandwidth must be a number/)
  await refused('--xml /nowhere/x.xml', /cannot read file '\/nowhere\/x.xml'/)
  await refused('--live', /not supported by the connection driver: virDomainMigrate3/)
})

test('a guest is moved, and then its disks, with a line for each step of memory and disk', async (t) => {
  const both = await hosts(t)
  const { source, destination } = both
  const command = cli(
    ['-c', source.uri, 'migrate', 'guest', destination.uri].concat(
      '--live --stream-disks --wait --verbose --bandwidth 7'.split(' '),
    ),
  )
  await until('the memory is on its way', () => named(source, 'domainGetJobStats').length > 0)
  both.arrive()
  await until('the disk is on its way', () => named(destination, 'domainStreamDiskInfo').length > 1)
  both.disk = undefined
  both.state = shutOff
  const { status, stdout, stderr } = await command
  assert.equal(stderr, '')
  assert.equal(status, 0)
  assert.match(stdout, /^Memory: \[ 75 %\] 96\.000 MiB of 128\.000 MiB$/m)
  assert.match(stdout, /^Disk vda: \[ 25 %\] 16\.000 MiB of 64\.000 MiB$/m)
  assert.match(stdout, /^Disk vda: \[100 %\]/m)
  assert.match(stdout, /^Domain 'guest' runs at/m)
  const flags = c.VIR_MIGRATE_LIVE | c.VIR_MIGRATE_STREAM_DISKS
  const params = { bandwidth: 7 * MiB }
  const perform = [params, flags, 'prepared', destination.uri]
  assert.deepEqual(
    named(source, 'domainMigratePerform').map((args) => args.slice(1, 5)),
    [perform],
  )
  assert.deepEqual(named(destination, 'domainMigrateFinish'), [[params, flags, 'performed', false]])
})

test('without --wait the command ends when the guest has moved, and says how to see the rest and how to go back', async (t) => {
  const both = await hosts(t)
  both.arrive()
  const { source, destination } = both
  const { status, stdout } = await cli([
    '-c',
    source.uri,
    'migrate',
    'guest',
    destination.uri,
    '--live',
    '--stream-disks',
  ])
  assert.equal(status, 0)
  assert.match(stdout, /disk vda goes on being streamed there/)
  assert.ok(stdout.includes(`virstream -c '${destination.uri}' stream-info guest`))
  assert.ok(stdout.includes(`virstream -c '${source.uri}' migrate-rollback guest`))
})

test('Ctrl-C before the guest has moved aborts the migration', async (t) => {
  const both = await hosts(t)
  const { source, destination } = both
  const command = start(['-c', source.uri, 'migrate', 'guest', destination.uri, '--live', '--stream-disks'])
  await until('the memory is on its way', () => named(source, 'domainMigratePerform').length > 0)
  command.kill('SIGINT')
  const { status, stderr } = await end(command)
  assert.equal(status, 1)
  assert.match(stderr, /is being aborted.*\nerror: Failed to migrate domain 'guest'\nerror: canceled by client/)
  assert.equal(named(source, 'domainAbortJob').length, 1)
  assert.deepEqual(
    named(destination, 'domainMigrateFinish').map((args) => args[3]),
    [true],
  )
})

test('Ctrl-C after the guest has moved lets go of the disks, which go on', async (t) => {
  const both = await hosts(t)
  both.arrive()
  const { source, destination } = both
  const words = '--live --stream-disks --wait --verbose'.split(' ')
  const command = start(['-c', source.uri, 'migrate', 'guest', destination.uri, ...words])
  await says(command.stdout, /Disk vda/)
  command.kill('SIGINT')
  const { status, stderr } = await end(command)
  assert.equal(status, 130)
  assert.match(stderr, /disk vda goes on being streamed there, in the background/)
  assert.equal(named(source, 'domainAbortJob').length, 0)
})

test('who does not read any more while the guest is moved does not wait for its disks', async (t) => {
  const both = await hosts(t)
  const { source, destination } = both
  const stdout = new Writable({
    write: (_chunk, _encoding, done) => done(Object.assign(new Error('nobody reads'), { code: 'EPIPE' })),
  })
  const stderr = new PassThrough()
  const words = '--live --stream-disks --wait --verbose'.split(' ')
  const command = runCli(['-c', source.uri, 'migrate', 'guest', destination.uri, ...words], {
    ...{ stdin: Readable.from([]), stdout, stderr, env: {} },
  })
  await new Promise((resolve) => stdout.once('close', resolve))
  both.arrive()
  assert.equal(await command, 130)
  assert.match(String(stderr.read()), /disk vda goes on being streamed there, in the background/)
})

test('a guest that comes back in the meantime is an error of who waits for its disks', async (t) => {
  const both = await hosts(t)
  both.arrive()
  const { source, destination } = both
  const words = '--live --stream-disks --wait'.split(' ')
  const command = cli(['-c', source.uri, 'migrate', 'guest', destination.uri, ...words])
  await until('the disk is on its way', () => named(destination, 'domainStreamDiskInfo').length > 0)
  const back = await cli(['-c', source.uri, 'migrate-rollback', 'guest'])
  assert.deepEqual([back.stdout, back.stderr], ["Domain 'guest' is back\n\n", ''])
  both.disk = undefined
  const { status, stderr } = await command
  assert.equal(status, 1)
  assert.match(stderr, /has come back, the migration was aborted/)
  const again = await cli(['-c', source.uri, 'migrate-rollback', 'guest'])
  assert.match(again.stderr, /is not at another host with its disks still here/)
})

test('who waits for the disks of a guest hears when it has ended there, and when its source has gone', async (t) => {
  const words = '--live --stream-disks --wait'.split(' ')
  const wait = async (both: Hosts, change: () => unknown): ReturnType<typeof cli> => {
    both.arrive()
    const command = cli(['-c', both.source.uri, 'migrate', 'guest', both.destination.uri, ...words])
    await until('the disk is on its way', () => named(both.destination, 'domainStreamDiskInfo').length > 0)
    await change()
    return command
  }
  const both = await hosts(t)
  const ended = await wait(both, () => Object.assign(both, { state: shutOff, there: shutOff, disk: undefined }))
  assert.equal(ended.status, 1)
  assert.match(ended.stderr, /'guest' does not run at the destination any more; all of its disks are there/)

  // a transient one is not even there any more when its disks are
  const transient = await hosts(t)
  const forgotten = await wait(transient, () => Object.assign(transient, { state: shutOff, disk: 'unknown' }))
  assert.equal(forgotten.status, 1)
  assert.match(forgotten.stderr, /'guest' does not run at the destination any more; all of its disks are there/)
  const given = await hosts(t)
  const lost = await wait(given, () => Object.assign(given, { state: givenUp, disk: 'unknown' }))
  assert.match(lost.stderr, /does not run at the destination any more; ask for it here by domstate --reason/)

  const left = await hosts(t)
  const alone = await wait(left, left.leave)
  assert.equal(alone.status, 1)
  assert.match(alone.stderr, /Failed to follow the disks of domain 'guest', which follow it as long as virstreamd/)
})

test('a destination that is lost is given up when that is said, wherever the domain is', async (t) => {
  const { source } = await hosts(t)
  const { stdout, stderr } = await cli(['-c', source.uri, 'migrate-rollback', 'guest', '--destination-is-lost'])
  assert.deepEqual([stdout, stderr], ["The destination of domain 'guest' was given up\n\n", ''])
  assert.deepEqual(named(source, 'domainAbortJob')[0]?.[1], c.VIR_DOMAIN_ABORT_JOB_DESTINATION_LOST)
})

test('a job is told of as virsh does, with a line for each disk', async (t) => {
  const { source } = await hosts(t)
  const { stdout } = await cli(['-c', source.uri, 'domjobinfo', 'guest'])
  assert.equal(
    stdout,
    [
      'Job type:         Unbounded   ',
      'Operation:        Outgoing migration',
      'Time elapsed:     1500         ms',
      'Data processed:   96.000 MiB',
      'Data remaining:   32.000 MiB',
      'Data total:       128.000 MiB',
      'Memory processed: 96.000 MiB',
      'Memory remaining: 32.000 MiB',
      'Memory total:     128.000 MiB',
      'Iteration:        2',
      'Transport:        zstd',
      'Data on link:     24.000 MiB',
      'Compression:      4.0 : 1',
      '',
      '',
    ].join('\n'),
  )
  const json = await cli(['-c', source.uri, 'domjobinfo', 'guest', '--json', '--keep-completed'])
  assert.deepEqual(JSON.parse(json.stdout), job)
  assert.deepEqual(
    named(source, 'domainGetJobStats').map((args) => args[1]),
    [0, 3],
  )
  const moved = {
    ...job,
    type: c.VIR_DOMAIN_JOB_FAILED,
    downtime: 40,
    disks: [{ disk: 'vda', offset: 1, size: 2 }],
    error: 'why',
  }
  assert.deepEqual(jobLines(moved).slice(-3), [
    'Disk vda:         1.000 B of 2.000 B',
    'Total downtime:   40           ms',
    'Error message:    why',
  ])
  const xbzrle = {
    ...{ compressionCache: 64 * MiB, compressionBytes: MiB, compressionPages: 2 },
    ...{ compressionCacheMisses: 3, compressionOverflow: 4 },
  }
  assert.deepEqual(jobLines({ ...job, ...xbzrle }).slice(-5), [
    'Compression cache: 64.000 MiB',
    'Compressed data:  1.000 MiB',
    'Compressed pages: 2',
    'Compression cache misses: 3',
    'Compression overflows: 4',
  ])
  assert.deepEqual(jobLines({ ...job, type: c.VIR_DOMAIN_JOB_NONE }), ['Job type:         None        '])
  assert.equal((await cli(['-c', source.uri, 'domjobabort', 'guest', '--postcopy'])).status, 0)
  assert.deepEqual(named(source, 'domainAbortJob')[0]?.[1], c.VIR_DOMAIN_ABORT_JOB_POSTCOPY)
})

test('memory is let follow when it takes too long, or has gone over once', async (t) => {
  const refused = async (words: string, message: RegExp): Promise<void> => {
    const { status, stderr } = await cli(['migrate', 'test', 'test:///default', '--live', ...words.split(' ')])
    assert.equal(status, 1, words)
    assert.match(stderr, message)
  }
  await refused('--postcopy --timeout-postcopy', /--timeout-postcopy requires --timeout/)
  await refused('--timeout 1 --timeout-postcopy', /--timeout-postcopy requires --postcopy/)
  await refused('--postcopy-after-precopy', /--postcopy-after-precopy requires --postcopy/)
  await refused('--postcopy --timeout 1 --timeout-postcopy --timeout-suspend', /mutually exclusive/)

  const late = await hosts(t)
  const move = ['-c', late.source.uri, 'migrate', 'guest', late.destination.uri, '--live', '--postcopy']
  const waiting = cli([...move, '--timeout', '1', '--timeout-postcopy'])
  await until('post-copy', () => named(late.source, 'domainMigrateStartPostCopy').length === 1)
  late.arrive()
  assert.equal((await waiting).status, 0)

  const passes = await hosts(t)
  const words = ['-c', passes.source.uri, 'migrate', 'guest', passes.destination.uri, '--live', '--postcopy']
  const going = cli([...words, '--postcopy-after-precopy'])
  await until('the memory is on its way', () => named(passes.source, 'domainMigratePerform').length > 0)
  const pass = (iteration: number): void =>
    passes.source.host().emit({ kind: 'migration-iteration', domain: ref, iteration })
  pass(1)
  pass(2)
  await until('post-copy', () => named(passes.source, 'domainMigrateStartPostCopy').length === 1)
  passes.arrive()
  assert.equal((await going).status, 0)
})

test('a migration that is under way is changed, and asked what holds for it', async (t) => {
  const { source } = await hosts(t)
  const ask = (...words: string[]): ReturnType<typeof cli> => cli(['-c', source.uri, ...words])
  assert.equal((await ask('migrate-postcopy', 'guest')).status, 0)
  assert.equal((await ask('migrate-setmaxdowntime', 'guest', '500')).status, 0)
  assert.equal((await ask('migrate-setspeed', 'guest', '2G')).status, 0)
  assert.equal((await ask('migrate-setspeed', 'guest', '0', '--postcopy')).status, 0)
  assert.equal((await ask('migrate-getmaxdowntime', 'guest')).stdout, '300\n')
  assert.equal((await ask('migrate-getspeed', 'guest', '--postcopy')).stdout, '7\n')
  assert.equal((await ask('migrate-compcache', 'guest')).stdout, 'Compression cache: 64.000 MiB\n')
  assert.equal((await ask('migrate-compcache', 'guest', '--size', '128M')).stdout, 'Compression cache: 64.000 MiB\n')
  const asked = (name: string): unknown[][] => named(source, name).map((args) => args.slice(1))
  assert.deepEqual(asked('domainMigrateStartPostCopy'), [[0]])
  assert.deepEqual(asked('domainMigrateSetCompressionCache'), [[128 * MiB, 0]])
  assert.deepEqual(asked('domainMigrateSetMaxDowntime'), [[500, 0]])
  assert.deepEqual(asked('domainMigrateSetMaxSpeed'), [
    [2048, 0],
    [0, c.VIR_DOMAIN_MIGRATE_MAX_SPEED_POSTCOPY],
  ])
  assert.deepEqual(asked('domainMigrateGetMaxSpeed'), [[c.VIR_DOMAIN_MIGRATE_MAX_SPEED_POSTCOPY]])
  assert.match((await ask('migrate-setmaxdowntime', 'guest', 'soon')).stderr, /downtime must be a whole number/)
})
