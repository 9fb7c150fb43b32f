import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { chmod, readdir, readFile, stat, utimes, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import { CapabilitiesCache } from '../../src/machine/capabilities-cache.js'
import { SchemaIndex, type SchemaInfo } from '../../src/machine/capabilities-schema.js'
import { QemuCapabilities } from '../../src/machine/capabilities.js'
import { kvmProbeProgram } from '../../src/machine/kvm-probe.gen.js'
import { probeAcceleration, probeKvm } from '../../src/machine/kvm-probe.js'
import { processStartTime } from '../../src/util/process-start-time.js'
import { run } from '../../src/util/run.js'
import { until } from '../support/domain.js'
import { temporaryFolder } from '../support/images.js'
import { requires } from '../support/requires.js'
import { emulator, startQemu, withoutMachine } from './command-qemu.js'

const load = (cacheDir: string, binary = emulator): Promise<QemuCapabilities> =>
  QemuCapabilities.load(binary, { cacheDir })

/** A program that says on a file that it was run, and then is the real QEMU. */
async function countedQemu(folder: string): Promise<{ path: string; runs: () => Promise<number> }> {
  const [path, count] = [join(folder, 'qemu'), join(folder, 'count')]
  await writeFile(path, `#!/bin/sh\necho run >> '${count}'\nexec '${emulator}' "$@"\n`)
  await chmod(path, 0o755)
  const runs = async (): Promise<number> => (await readFile(count, 'utf8')).split('\n').length - 1
  return { path, runs }
}

test('a binary says what it can do', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64')) return
  const caps = await load(await temporaryFolder(t))
  const { stdout } = await run(emulator, ['--version'])
  const [, major = 0, minor = 0, micro = 0] = (/version (\d+)\.(\d+)\.(\d+)/.exec(stdout) ?? []).map(Number)
  assert.equal(caps.version, major * 1_000_000 + minor * 1000 + micro)
  assert.equal(caps.arch, 'x86_64')
  assert.equal(caps.defaultMachine?.alias, 'pc')
  assert.match(caps.machine('q35')?.name ?? '', /^pc-q35-/)
  assert.equal(caps.machine('no such machine'), undefined)
  assert.equal(caps.defaultRamId('q35'), 'pc.ram')
  assert.deepEqual(
    ['virtio-blk-pci', 'nothing'].map((type) => caps.hasDevice(type)),
    [true, false],
  )
  assert.deepEqual(
    ['qcow2', 'quorum', 'nothing'].map((name) => caps.hasBlockDriver(name)),
    [true, true, false],
  )
  assert.deepEqual(
    ['block-stream', 'nothing'].map((name) => caps.hasCommand(name)),
    [true, false],
  )
  assert.equal(caps.hasEvent('BLOCK_JOB_COMPLETED'), true)
  assert.equal(caps.hasNetdev('user'), true)
  assert.deepEqual(
    ['sandbox', 'nothing'].map((name) => caps.hasOption(name)),
    [true, false],
  )
  assert.equal(caps.hasMachineProperty('hpet'), true)
})

test('arguments of a command are found, also those of one kind of it only', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64')) return
  const caps = await load(await temporaryFolder(t))
  assert.equal(caps.hasCommandArgument('block-stream', 'base-node'), true)
  assert.equal(
    caps.hasCommandArgument('block-export-add', 'allocation-depth'),
    true,
    'only exports of type nbd have it',
  )
  assert.equal(caps.hasCommandArgument('block-stream', 'nothing'), false)
  assert.equal(caps.hasCommandArgument('nothing', 'device'), false)
})

test('JSON on the command line is told by the schema and not by the version', () => {
  const command = (name: string, features?: string[]): SchemaInfo => ({
    ...{ 'meta-type': 'command', name, 'arg-type': '1', 'ret-type': '0', ...(features && { features }) },
  })
  assert.equal(new SchemaIndex([command('device_add', ['json-cli'])]).hasCommandFeature('device_add', 'json-cli'), true)
  assert.equal(new SchemaIndex([command('device_add')]).hasCommandFeature('device_add', 'json-cli'), false)
  assert.deepEqual(new SchemaIndex([command('object-add')]).argumentValues('object-add', 'qom-type'), [])
})

test('a binary is asked once, and again when it was replaced or its answer was damaged', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64')) return
  const folder = await temporaryFolder(t)
  const { path, runs } = await countedQemu(folder)
  const cacheDir = join(folder, 'cache')
  const first = await load(cacheDir, path)
  const second = await load(cacheDir, path)
  assert.equal(await runs(), 1)
  assert.deepEqual([second.machines, second.schema], [first.machines, first.schema])
  assert.equal(await second.isCurrent(), true)
  const [file = ''] = await readdir(cacheDir)
  assert.equal((await stat(join(cacheDir, file))).mode & 0o777, 0o600)
  await writeFile(join(cacheDir, file), '{"key":')
  await load(cacheDir, path)
  assert.equal(await runs(), 2)
  await utimes(path, 1000, 1000)
  assert.equal(await second.isCurrent(), false)
  await load(cacheDir, path)
  assert.equal(await runs(), 3)
})

test('one process asks a binary once, however many domains want to know at the same time', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64')) return
  const folder = await temporaryFolder(t)
  const { path, runs } = await countedQemu(folder)
  const cache = new CapabilitiesCache({ cacheDir: join(folder, 'cache'), emulator: path })
  const all = await Promise.all([cache.get(), cache.get(path), cache.get()])
  assert.equal(new Set(all).size, 1)
  assert.equal(await runs(), 1)
})

test('a binary that is missing, or is no QEMU, is told by name and with its own words', async (t) => {
  const cacheDir = await temporaryFolder(t)
  await assert.rejects(load(cacheDir, '/no/such/qemu'), { code: 'VIR_ERR_SYSTEM_ERROR', message: /'\/no\/such\/qemu'/ })
  await assert.rejects(load(cacheDir, '/bin/true'), { code: 'VIR_ERR_INTERNAL_ERROR', message: /'\/bin\/true'/ })
  await assert.rejects(load(cacheDir, '/bin/ls'), {
    code: 'VIR_ERR_INTERNAL_ERROR',
    message: /invalid option|unrecognized/,
  })
})

// --- libvirt's XML ---------------------------------------------------------------------------------------------

const schemas = '/usr/share/libvirt/schemas'

async function validate(folder: string, xml: string, schema: string): Promise<void> {
  const file = join(folder, 'document.xml')
  await writeFile(file, xml)
  await run('xmllint', ['--noout', '--relaxng', join(schemas, schema), file])
}

test('the capabilities are valid by libvirt’s own schema and name what there is', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:xmllint', `file:${schemas}/capability.rng`)) return
  const folder = await temporaryFolder(t)
  const cache = new CapabilitiesCache({ cacheDir: folder })
  const xml = await cache.capabilitiesXml()
  await validate(folder, xml, 'capability.rng')
  assert.match(xml, /<machine canonical='pc-q35-[^']+' maxCpus='\d+'>q35<\/machine>/)
  assert.match(xml, /<domain type='qemu'\/>/)
  assert.equal(xml.includes("<domain type='kvm'/>"), await (await cache.get()).kvmWorks())
})

test('the domain capabilities are valid for every machine of today, and refused for what there is not', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:xmllint', `file:${schemas}/domaincaps.rng`)) return
  const folder = await temporaryFolder(t)
  const cache = new CapabilitiesCache({ cacheDir: folder })
  for (const machine of [undefined, 'pc', 'q35']) {
    const xml = await cache.domainCapabilitiesXml(undefined, 'x86_64', machine, 'qemu')
    await validate(folder, xml, 'domaincaps.rng')
    assert.equal(xml.includes('<value>ide</value>'), machine !== 'q35')
  }
  const code = 'VIR_ERR_INVALID_ARG'
  await assert.rejects(cache.domainCapabilitiesXml(undefined, 'aarch64'), { code, message: /'aarch64'/ })
  await assert.rejects(cache.domainCapabilitiesXml(undefined, undefined, 'nothing'), { code, message: /'nothing'/ })
  await assert.rejects(cache.domainCapabilitiesXml(undefined, undefined, undefined, 'xen'), { code, message: /'xen'/ })
})

// --- acceleration ----------------------------------------------------------------------------------------------

test('the program of the probe is what its source assembles to', async (t) => {
  if (!requires(t, 'program:as', 'program:ld')) return
  const folder = await temporaryFolder(t)
  const source = join(import.meta.dirname, '../../../src/machine/kvm-probe.S')
  const [object, binary] = [join(folder, 'probe.o'), join(folder, 'probe.bin')]
  await run('as', ['--64', '-o', object, source])
  await run('ld', ['-Ttext=0xffe00', '--oformat=binary', '-o', binary, object])
  assert.equal((await readFile(binary)).toString('base64'), kvmProbeProgram)
})

test('the program of the probe does its work on TCG', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64')) return
  assert.deepEqual(await probeAcceleration(emulator, 'tcg', 60_000), { works: true, reason: '' })
})

test('an accelerator that takes too long, or a binary that cannot be run, does not work', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64')) return
  const late = await probeAcceleration(emulator, 'tcg', 1)
  assert.deepEqual([late.works, late.timedOut], [false, true])
  const missing = await probeAcceleration('/no/such/qemu', 'tcg')
  assert.equal(missing.works, false)
  assert.match(missing.reason, /\/no\/such\/qemu/)
})

test('a guest that computes something else does not count as working', async (t) => {
  const folder = await temporaryFolder(t)
  const path = join(folder, 'qemu')
  await writeFile(path, '#!/bin/sh\nexit 3\n')
  await chmod(path, 0o755)
  const { works, reason } = await probeAcceleration(path, 'tcg')
  assert.deepEqual([works, reason], [false, 'a small guest does not run on tcg: it computed wrong'])
})

test('the answer about KVM is kept until the binary changes, and agrees with a run of the program', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'kvm')) return
  const folder = await temporaryFolder(t)
  const { path, runs } = await countedQemu(folder)
  const cacheDir = join(folder, 'cache')
  const direct = await probeAcceleration(emulator, 'kvm')
  const first = await probeKvm(path, cacheDir)
  assert.deepEqual([first.kvm, first.reason === ''], [direct.works, direct.works])
  if (direct.timedOut === true) return // not remembered
  assert.deepEqual(await probeKvm(path, cacheDir), first)
  assert.equal(await runs(), 1)
  await utimes(path, 1000, 1000)
  await probeKvm(path, cacheDir)
  assert.equal(await runs(), 2)
})

test('QEMU itself agrees with what the cache says of its schema', async (t) => {
  const qemu = await startQemu(t, withoutMachine)
  if (!qemu) return
  const caps = await load(await temporaryFolder(t))
  assert.deepEqual(caps.schema, await qemu.execute('query-qmp-schema'))
})

test('a binary that is being asked ends with a process that is killed', async (t) => {
  if (!requires(t, 'program:setpriv')) return
  const folder = await temporaryFolder(t)
  const [path, said] = [join(folder, 'qemu'), join(folder, 'pid')]
  await writeFile(path, `#!/bin/sh\necho $$ > '${said}.new'\nmv '${said}.new' '${said}'\nexec sleep 600\n`)
  await chmod(path, 0o755)
  const code = `import('${import.meta.resolve('../../src/machine/capabilities-probe.js')}').then((probe) => probe.probeCapabilities('${path}'))`
  const asking = spawn(process.execPath, ['-e', code], { stdio: 'ignore' })
  t.after(() => asking.kill('SIGKILL'))
  await until('the binary runs', () => existsSync(said))
  const pid = Number(await readFile(said, 'utf8'))
  assert.notEqual(processStartTime(pid), undefined)
  asking.kill('SIGKILL')
  await once(asking, 'exit')
  await until('it is gone', () => processStartTime(pid) === undefined)
})
