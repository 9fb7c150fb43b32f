import assert from 'node:assert/strict'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import type { DomainDef } from '../../src/conf/domain-def.js'
import { ioThrottleArguments } from '../../src/machine/command-disk.js'
import { escapeComma, toJson, toKeyval } from '../../src/machine/command-props.js'
import { buildCommand, commandEnvironment, commandSecretFiles, type CommandContext } from '../../src/machine/command.js'
import { asText, goldenCaps, goldenDefinition, goldenFolder, goldenNames } from './command-golden.js'

const context: CommandContext = {
  caps: goldenCaps,
  accel: 'tcg',
  monitorFd: 9,
  runDir: '/run/guest',
  vncPort: 5907,
  now: new Date('2026-01-02T03:04:05Z'),
}

const definition = (name: string): DomainDef => goldenDefinition(name, goldenCaps, '/srv/guests')

for (const name of goldenNames) {
  test(`the definition '${name}' becomes its golden command line`, () => {
    const text = asText(buildCommand(definition(name), context))
    const golden = join(goldenFolder, `${name}.args`)
    if (process.env['UPDATE'] === '1') writeFileSync(golden, text)
    assert.equal(text, readFileSync(golden, 'utf8'))
  })
}

/** The value of an option's first use. */
const valueOf = (argv: string[], option: string): string => argv[argv.indexOf(option) + 1] ?? ''
const build = (change: (def: DomainDef) => void, more: Partial<CommandContext> = {}, name = 'server-q35'): string[] => {
  const def = definition(name)
  change(def)
  return buildCommand(def, { ...context, ...more })
}
const refused = (change: (def: DomainDef) => void, code: string, message: RegExp): void =>
  assert.throws(() => build(change), { code, message })

test('memory that is no multiple of 1 MiB is not rounded to one, but to the 8 KiB that QEMU counts in', () => {
  const argv = build((def) => (def.memory = 131_081))
  assert.equal(valueOf(argv, '-m'), 'size=131088k')
  assert.match(valueOf(argv, '-object'), new RegExp(`"size":${131_088 * 1024}\\b`))
})

test('commas in names and paths are doubled where QEMU splits at them, and only there', () => {
  const argv = build(() => undefined, {}, 'pc-legacy')
  assert.equal(valueOf(argv, '-name'), 'guest=legacy,, with a comma,debug-threads=on')
  assert.ok(argv.some((word) => word.includes('path=/srv/guests/serial,, log.txt,append=on')))
  assert.ok(argv.some((word) => word.includes('"filename":"/srv/guests/comma, space.raw"')))
  assert.equal(escapeComma('a,b,,c'), 'a,,b,,,,c')
})

test('a binary that takes no JSON gets the same devices as key=value', () => {
  const caps = { ...goldenCaps, takesJson: () => false }
  const argv = build(() => undefined, { caps })
  const devices = argv.filter((_, at) => argv[at - 1] === '-device')
  assert.ok(devices.includes('virtio-blk-pci,bus=pci.4,addr=0x0,drive=node-2-format,id=virtio-disk0,bootindex=1'))
  assert.ok(devices.every((word) => !word.includes('{')))
  assert.equal(valueOf(argv, '-netdev'), 'user,id=hostnet0')
})

test('64-bit numbers and nested objects survive both forms', () => {
  const props = { a: 0x5000c50015ea71acn, b: { c: true, d: undefined }, e: ['x,y', 1], f: undefined }
  assert.equal(toJson(props), '{"a":5764824127192592812,"b":{"c":true},"e":["x,y",1]}')
  assert.deepEqual(toKeyval(props), ['a=5764824127192592812', 'b.c=on', 'e.0=x,,y', 'e.1=1'])
})

test('what the binary does not have is left away or refused', () => {
  const caps = { ...goldenCaps, hasOption: () => false, hasMachineProperty: () => false, defaultRamId: () => undefined }
  const argv = build((def) => delete def.features.acpi, { caps })
  assert.equal(argv.includes('-sandbox'), false)
  assert.equal(argv.includes('-action'), false)
  assert.equal(argv.includes('-no-acpi'), true)
  assert.doesNotMatch(valueOf(argv, '-machine'), /acpi|hpet|memory-backend/)
  const without = { ...goldenCaps, hasDevice: (type: string) => type !== 'virtio-rng-pci' }
  assert.throws(() => build(() => undefined, { caps: without }), { code: 'VIR_ERR_CONFIG_UNSUPPORTED' })
})

test('without the quorum driver no guard is put below the disk', () => {
  const caps = { ...goldenCaps, hasBlockDriver: (name: string) => name !== 'quorum' }
  assert.equal(
    build(() => undefined, { caps })
      .join('\n')
      .includes('quorum'),
    false,
  )
  assert.equal(
    build(() => undefined)
      .join('\n')
      .includes('"driver":"quorum"'),
    true,
  )
})

test('a tap device comes as descriptors, or by the name that it was given', () => {
  const bridge = (def: DomainDef): void => {
    const [net] = def.interfaces
    if (net) Object.assign(net, { type: 'bridge', source: { bridge: 'br0' } })
  }
  assert.equal(
    valueOf(build(bridge, { tapFds: { net0: [20] } }), '-netdev'),
    '{"type":"tap","fd":"20","id":"hostnet0"}',
  )
  assert.match(valueOf(build(bridge, { tapFds: { net0: [20, 21] } }), '-netdev'), /"fds":"20:21"/)
  const named = build((def) => {
    bridge(def)
    const [net] = def.interfaces
    if (net) net.target = { dev: 'vnet3' }
  })
  assert.match(valueOf(named, '-netdev'), /"ifname":"vnet3","script":"no","downscript":"no"/)
  refused(bridge, 'VIR_ERR_INTERNAL_ERROR', /has no tap device/)
})

test('what cannot be done is refused with its name', () => {
  const unsupported = 'VIR_ERR_CONFIG_UNSUPPORTED'
  refused((def) => def.graphics.forEach((g) => (g.type = 'spice')), unsupported, /'spice'/)
  refused((def) => def.interfaces.forEach((net) => (net.type = 'vdpa')), unsupported, /'vdpa'/)
  refused(
    (def) => def.consoles.forEach((c) => ((c.targetType = 'virtio'), (c.source = { type: 'stdio' }))),
    unsupported,
    /stdio/,
  )
  refused((def) => def.videos.forEach((video) => (video.model = 'gop')), unsupported, /'gop'/)
  refused((def) => (def.cpu = { mode: 'host-passthrough', features: [], numa: [] }), unsupported, /host-passthrough/)
  refused((def) => (def.os.firmware = 'efi'), 'VIR_ERR_OPERATION_FAILED', /firmware/)
})

test('a KVM domain that has to run on TCG gets the richest CPU there is', () => {
  const change = (def: DomainDef): void => {
    def.virtType = 'kvm'
    def.cpu = { mode: 'host-passthrough', features: [], numa: [] }
  }
  assert.equal(valueOf(build(change), '-cpu'), 'max')
  assert.equal(valueOf(build(change, { accel: 'kvm' }), '-cpu'), 'host')
})

test('the clock is reckoned from the time of the start', () => {
  const rtc = (clock: Partial<DomainDef['clock']>): string =>
    valueOf(
      build((def) => (def.clock = { offset: 'utc', timers: [], ...clock })),
      '-rtc',
    )
  assert.equal(rtc({ offset: 'utc' }), 'base=utc')
  assert.equal(rtc({ offset: 'localtime' }), 'base=localtime')
  assert.equal(rtc({ offset: 'variable', adjustment: '-5', basis: 'utc' }), 'base=2026-01-02T03:04:00')
  assert.equal(rtc({ offset: 'absolute', start: 0 }), 'base=1970-01-01T00:00:00')
  assert.equal(rtc({ offset: 'utc', adjustment: 'reset' }), 'base=utc')
})

test('the environment has what the definition says, the time zone of the guest among it', () => {
  assert.deepEqual(commandEnvironment(definition('kernel')), { EXAMPLE: 'a b' })
  const def = definition('server-q35')
  def.clock = { offset: 'timezone', timezone: 'Europe/Berlin', timers: [] }
  assert.deepEqual(commandEnvironment(def), { TZ: 'Europe/Berlin' })
})

test('cookies stand in a file of the run directory and not on the command line', () => {
  const change = (def: DomainDef): void => {
    const cookies = [{ name: 'session', value: 'hidden' }]
    const hosts = [{ name: 'server.example' }]
    const source = { type: 'network', protocol: 'https', name: 'x', hosts, cookies, format: 'raw', index: 9 } as const
    def.disks.slice(0, 1).forEach((disk) => (disk.source = { ...source, hosts, cookies }))
  }
  assert.doesNotMatch(build(change).join('\n'), /hidden/)
  assert.ok(build(change).join('\n').includes('"file":"/run/guest/node-9-cookies.secret"'))
  const def = definition('server-q35')
  change(def)
  assert.deepEqual(commandSecretFiles(def, context), [
    { path: '/run/guest/node-9-cookies.secret', data: 'session=hidden' },
  ])
})

test('limits of <iotune> become the arguments of block_set_io_throttle', () => {
  const [disk] = definition('disks').disks
  assert.ok(disk)
  assert.equal(ioThrottleArguments(disk), undefined)
  const args = ioThrottleArguments({ ...disk, iotune: { total_bytes_sec: 1000, read_iops_sec_max: 50 } })
  const zero = { bps_rd: 0, bps_wr: 0, iops: 0, iops_rd: 0, iops_wr: 0 }
  assert.deepEqual(args, { id: args?.id, bps: 1000, ...zero, iops_rd_max: 50 })
})
