import assert from 'node:assert/strict'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { cli } from './run.js'

/** A command that works: what it prints. */
async function prints(...words: string[]): Promise<string> {
  const { status, stdout, stderr } = await cli(words)
  assert.equal(stderr, '')
  assert.equal(status, 0)
  return stdout
}

/** A command that fails: what it says on standard error. */
async function fails(...words: string[]): Promise<string> {
  const { status, stderr } = await cli(words)
  assert.equal(status, 1, stderr)
  return stderr
}

const uuid = '6695eb01-f6a4-8304-79aa-97f2502e193f'

test('list prints the table of virsh', async () => {
  const table = ' Id   Name   State\n----------------------\n 1    test   running\n\n'
  assert.equal(await prints('list'), table)
  assert.equal(await prints('list', '--all'), table)
  assert.equal(await prints('list', '--inactive'), ' Id   Name   State\n--------------------\n\n')
  assert.equal(await prints('-q', 'list'), ' 1    test   running\n')
  assert.equal(
    await prints('list', '--title'),
    ' Id   Name   State     Title\n------------------------------\n 1    test   running   \n\n',
  )
})

test('list prints names, UUIDs and ids for scripts, and JSON', async () => {
  assert.equal(await prints('list', '--name'), 'test\n\n')
  assert.equal(await prints('list', '--uuid', '--name'), `${uuid} test\n\n`)
  assert.equal(await prints('-q', 'list', '--id'), '1\n')
  assert.equal(await prints('list', '--state-paused', '--name'), '\n')
  assert.deepEqual(JSON.parse(await prints('list', '--json')), [
    { id: 1, name: 'test', uuid, state: 'running', title: '', managedSave: false },
  ])
})

test('a domain is named by id, UUID or name', async () => {
  for (const name of ['1', 'test', uuid, uuid.toUpperCase()])
    assert.equal(await prints('domstate', name), 'running\n\n')
})

test('dominfo, domstate and domblklist print what virsh prints', async () => {
  assert.match(
    await prints('dominfo', 'test'),
    /^Id: {13}1\nName: {11}test\nUUID: {11}6695eb01-[^]*\nState: {10}running\nCPU\(s\): {9}2\nCPU time: {7}\d+\.\ds\nMax memory: {5}8388608 KiB\n/,
  )
  assert.equal(await prints('domstate', 'test', '--reason'), 'running (booted)\n\n')
  assert.equal(
    await prints('domblklist', 'test', '--details'),
    [
      ' Type   Device   Target   Source',
      '---------------------------------------------',
      ' file   disk     vda      /guest/diskimage1',
      ' file   cdrom    sda      -',
      '\n',
    ].join('\n'),
  )
  assert.deepEqual(JSON.parse(await prints('domstate', 'test', '--json')), { state: 'running', reason: 'booted' })
})

test('sizes and statistics of disks come in bytes, with units, or as JSON', async () => {
  assert.equal(
    await prints('domblkinfo', 'test', 'vda'),
    'Capacity:       67108864\nAllocation:     0\nPhysical:       0\n\n',
  )
  assert.match(await prints('domblkinfo', 'test', '--device', 'vda', '--human'), /^Capacity: {7}64\.000 MiB\n/)
  assert.match(await prints('domblkinfo', 'test', '--all'), /\n vda +67108864 +0 +0\n sda +- +- +-\n/)
  assert.match(await prints('domblkstat', 'test', 'vda'), /^vda rd_req \d+\nvda rd_bytes \d+\n[^]*vda errs 0\n/)
  const stats = JSON.parse(await prints('domblkstat', 'test', 'vda', '--json')) as { errs: number }
  assert.equal(stats.errs, 0)
})

test('commands that change something say so in the words of virsh, and nothing with --quiet', async () => {
  assert.equal(await prints('suspend', 'test'), "Domain 'test' suspended\n\n")
  assert.equal(await prints('destroy', 'test'), "Domain 'test' destroyed\n\n")
  assert.equal(await prints('reboot', 'test'), "Domain 'test' is being rebooted\n\n")
  assert.equal(await prints('reset', 'test'), "Domain 'test' was reset\n\n")
  assert.equal(await prints('shutdown', 'test'), "Domain 'test' is being shutdown\n\n")
  assert.equal(await prints('undefine', 'test'), "Domain 'test' has been undefined\n\n")
  assert.equal(await prints('autostart', 'test'), "Domain 'test' marked as autostarted\n\n")
  assert.equal(await prints('autostart', 'test', '--disable'), "Domain 'test' unmarked as autostarted\n\n")
  assert.equal(await prints('managedsave', 'test'), "Domain 'test' state saved\n\n")
  assert.equal(await prints('-q', 'suspend', 'test'), '')
})

test('define and create read a file or standard input', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'virstream-cli-'))
  t.after(() => rm(folder, { recursive: true }))
  const file = join(folder, 'new.xml')
  const xml = "<domain type='test'><name>new</name><memory>65536</memory><os><type>hvm</type></os></domain>"
  await writeFile(file, xml)
  assert.equal(await prints('define', file), `Domain 'new' defined from ${file}\n\n`)
  assert.equal(await prints('create', file, '--paused'), `Domain 'new' created from ${file}\n\n`)
  const { stdout } = await cli(['define', '-', '--json'], { stdin: xml })
  const { name, id } = JSON.parse(stdout) as { name: string; id: number }
  assert.deepEqual({ name, id }, { name: 'new', id: -1 })
  assert.match(
    await fails('define', join(folder, 'none.xml')),
    /^error: Failed to open file '.*none.xml': No such file or directory\n$/,
  )
})

test('a saved domain is restored, from a file that is named from here', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'virstream-cli-'))
  t.after(() => rm(folder, { recursive: true }))
  const file = join(folder, 'test.save')
  assert.equal(await prints('save', 'test', file), `Domain 'test' saved to ${file}\n\n`)
  const none = join(folder, 'none.xml')
  const missing = `error: Failed to open file '${none}': No such file or directory\n`
  for (const words of [
    ['save', 'test', file],
    ['restore', file],
  ])
    assert.equal(await fails(...words, '--xml', none), missing)
  assert.match(
    await fails('restore', file),
    /^error: Failed to restore domain from .*\nerror: .*VIR_ERR_OPERATION_INVALID/,
  )
})

test('a failure is the sentence of the command, then that of the driver, with its code', async () => {
  assert.equal(
    await fails('resume', 'test'),
    "error: Failed to resume domain 'test'\nerror: domain is already running (VIR_ERR_OPERATION_INVALID)\n",
  )
  assert.equal(
    await fails('dominfo', 'nosuch'),
    "error: failed to get domain 'nosuch'\nerror: no domain with matching name 'nosuch' (VIR_ERR_NO_DOMAIN)\n",
  )
  assert.equal(await fails('start', 'test'), 'error: Domain is already active\n')
  assert.match(await fails('-r', 'destroy', 'test'), /read only access \(VIR_ERR_OPERATION_DENIED\)\n$/)
  assert.match(
    await fails('-c', 'virstream+none:///', 'list'),
    /^error: failed to connect to the hypervisor\nerror: .*VIR_ERR_NO_CONNECT/,
  )
  assert.match(
    await fails('domcapabilities'),
    /not supported by the connection driver: virConnectGetDomainCapabilities/,
  )
})

test('a command line that makes no sense is refused before anything is opened', async () => {
  assert.match(await fails('nosuch'), /^error: unknown command 'nosuch'/)
  assert.match(await fails('dominfo'), /^error: missing required argument 'domain'\nsee 'virstream dominfo --help'/)
  assert.match(await fails('dominfo', 'a', 'b'), /^error: too many arguments/)
  assert.match(await fails('list', '--bad'), /^error: unknown option '--bad'/)
  assert.match(await fails('event'), /one of --list, --all, or --event <type> is required/)
  assert.match(await fails('event', '--event', 'nosuch'), /unknown event type nosuch/)
  assert.match(
    await fails('event', '--all', '--timeout', 'soon'),
    /--timeout must be a whole number of at least 1, not 'soon'/,
  )
  assert.match(await fails('shutdown', 'test', '--mode', 'shout'), /mode must be 'acpi' or 'agent', not 'shout'/)
  assert.match(await fails('domblkinfo', 'test'), /requires a device or --all/)
  assert.match(await fails('blockresize', 'test', 'vda', '5X'), /size must be a number of KiB.*not '5X'/)
  assert.match(await fails('blockpull', 'test', 'vda', 'fast'), /bandwidth must be a number of MiB\/s.*not 'fast'/)
  assert.match(await fails('blockpull', 'test', 'vda', '--timeout', '3'), /--timeout requires --wait/)
  assert.match(await fails('blockcommit', 'test', 'vda', '--verbose'), /--verbose requires --wait/)
  assert.match(await fails('blockcommit', 'test', 'vda', '--pivot', '--keep-overlay'), /are mutually exclusive/)
  assert.match(
    await fails('blockjob', 'test', 'vda', '5', '--abort'),
    /conflict between abort, info, and bandwidth modes/,
  )
  assert.match(
    await fails('stream-disk', 'test', 'vda', '--start', '--stop'),
    /--start and --stop are mutually exclusive/,
  )
  assert.match(await fails('stream-disk', 'test', 'vda', '--stop', '--wait'), /--wait goes with a whole stream/)
  assert.match(await fails('stream-disk', 'test', 'vda', '--offset', '5'), /--offset requires --one/)
  assert.match(await fails('list', '--json', '--name'), /--json and --name are mutually exclusive/)
})

test('the default connection is a tree of the user, or what the environment says', async () => {
  const here = await cli(['-q', 'uri'])
  assert.equal(here.stdout, 'test:///default\n')
  const folder = await mkdtemp(join(tmpdir(), 'virstream cli-'))
  try {
    const { stdout, stderr } = await cli(['-q', 'uri'], { env: { XDG_STATE_HOME: folder } })
    assert.equal(stderr, '')
    assert.equal(stdout, `qemu:///embed?root=${folder.replace(' ', '%20')}/virstream\n`)
  } finally {
    await rm(folder, { recursive: true })
  }
})

test('version, uri and capabilities tell of the connection', async () => {
  assert.match(
    await prints('version'),
    /^Using library: virstream \d+\.\d+\.\d+\nUsing API: TEST .*\nRunning hypervisor: TEST 0\.0\.2\n\n$/,
  )
  assert.match(await prints('capabilities'), /^<capabilities>/)
  assert.match(await prints('dumpxml', 'test'), /^<domain type='test' id='1'>/)
  assert.doesNotMatch(await prints('dumpxml', 'test', '--inactive'), /id='1'/)
})
