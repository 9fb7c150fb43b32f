import assert from 'node:assert/strict'
import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'
import type { DomainDef } from '../../src/conf/domain-def.js'
import { parseDomainXml } from '../../src/conf/parse.js'
import { settleFirmware } from '../../src/qemu/command-firmware.js'
import { temporaryFolder } from '../support/images.js'
import { requires } from '../support/requires.js'

function domain(os: string, machine = 'pc-q35-7.2', more = ''): DomainDef {
  return parseDomainXml(`<domain type='qemu'><name>guest</name><memory>131072</memory>
    <os ${os}<type arch='x86_64' machine='${machine}'>hvm</type></os>${more}</domain>`)
}
const efi = (inner = '', machine?: string, more?: string): DomainDef => {
  const def = domain("firmware='efi'>", machine, more)
  return inner === '' ? def : Object.assign(def, { os: { ...def.os, ...(JSON.parse(inner) as object) } })
}

interface Described {
  name: string
  features: string[]
  machines?: string[]
  format?: string
}

/** A folder of descriptors with the files that they name. */
async function offer(t: TestContext, described: Described[]): Promise<string> {
  const folder = await temporaryFolder(t)
  for (const { name, features, machines = ['pc-q35-*'], format = 'raw' } of described) {
    const executable = { filename: join(folder, `${name}.code`), format }
    const template = { filename: join(folder, `${name}.vars`), format }
    await writeFile(executable.filename, '')
    const mapping = { device: 'flash', executable, 'nvram-template': template }
    const descriptor = {
      'interface-types': ['uefi'],
      mapping,
      targets: [{ architecture: 'x86_64', machines }],
      features,
    }
    await writeFile(join(folder, `${name}.json`), JSON.stringify(descriptor))
  }
  return folder
}

const usual: Described[] = [
  { name: '40-secure', features: ['acpi-s3', 'secure-boot', 'requires-smm', 'enrolled-keys'] },
  { name: '60-plain', features: ['acpi-s3'], machines: ['pc-q35-*', 'pc-i440fx-*'] },
  { name: '70-qcow2', features: [], format: 'qcow2' },
]

test('the first firmware that fits is taken, with SMM and a variable store of its own', async (t) => {
  const folder = await offer(t, usual)
  const def = efi()
  settleFirmware(def, '/nvram', [folder])
  const path = join(folder, '40-secure.code')
  assert.deepEqual(def.os.loader, { type: 'pflash', readonly: 'yes', secure: 'yes', path })
  assert.deepEqual(def.os.nvram, { path: '/nvram/guest_VARS.fd', template: join(folder, '40-secure.vars') })
  assert.equal(def.features.smm, 'on')
})

/** [what the definition says, machine, further elements] → the firmware's name, or none */
const choices: [string, string, string, string | undefined][] = [
  ['', 'pc-i440fx-7.2', '', '60-plain'],
  ['', 'pc-q35-7.2', "<features><smm state='off'/></features>", '60-plain'],
  ['{"loader":{"secure":"no"}}', 'pc-q35-7.2', '', '60-plain'],
  ['{"loader":{"secure":"yes"}}', 'pc-q35-7.2', '', '40-secure'],
  ['{"loader":{"secure":"yes"}}', 'pc-i440fx-7.2', '', undefined],
  ['{"loader":{"format":"qcow2"}}', 'pc-q35-7.2', '', '70-qcow2'],
  ['{"loader":{"type":"rom"}}', 'pc-q35-7.2', '', undefined],
  ['', 'pc-q35-7.2', "<pm><suspend-to-disk enabled='yes'/></pm>", undefined],
  ['', 'microvm', '', undefined],
]

test('machine, secure boot, format and power states decide which firmware fits', async (t) => {
  const folder = await offer(t, usual)
  for (const [inner, machine, more, expected] of choices) {
    const def = efi(inner, machine, more)
    const what = JSON.stringify([inner, machine, more])
    if (expected === undefined) {
      const error = { code: 'VIR_ERR_OPERATION_FAILED', message: /'efi'/ }
      assert.throws(() => settleFirmware(def, '/nvram', [folder]), error, what)
      continue
    }
    settleFirmware(def, '/nvram', [folder])
    assert.equal(def.os.loader?.path, join(folder, `${expected}.code`), what)
  }
})

test('a file of the administrator hides one of the same name, and what is no descriptor is passed over', async (t) => {
  const folder = await offer(t, usual)
  const admin = join(folder, 'etc')
  await mkdir(admin)
  await writeFile(join(admin, '40-secure.json'), '')
  await writeFile(join(admin, '10-broken.json'), '{"mapping"')
  const def = efi()
  settleFirmware(def, '/nvram', [admin, join(folder, 'missing'), folder])
  assert.equal(def.os.loader?.path, join(folder, '60-plain.code'))
})

test('a variable store that the definition names stays, and a named loader gets the template that belongs to it', async (t) => {
  const folder = await offer(t, usual)
  const own = efi('{"nvram":{"path":"/my/vars"}}')
  settleFirmware(own, '/nvram', [folder])
  assert.deepEqual(own.os.nvram, { path: '/my/vars', template: join(folder, '40-secure.vars') })
  const path = join(folder, '60-plain.code')
  const named = domain(`><loader type='pflash' readonly='yes'>${path}</loader><nvram>/my/vars</nvram>`)
  settleFirmware(named, '/nvram', [folder])
  assert.deepEqual(named.os.nvram, { path: '/my/vars', template: join(folder, '60-plain.vars') })
})

test('a BIOS guest is left alone', async (t) => {
  const folder = await offer(t, usual)
  for (const def of [domain('>'), domain("firmware='bios'>")]) {
    const before = structuredClone(def)
    settleFirmware(def, '/nvram', [folder])
    assert.deepEqual(def, before)
  }
})

test('the firmware that this host describes is found for both PC machines', (t) => {
  if (!requires(t, 'file:/usr/share/qemu/firmware/60-edk2-x86_64.json')) return
  for (const machine of ['pc-q35-7.2', 'pc-i440fx-7.2']) {
    const def = efi('', machine)
    settleFirmware(def, '/nvram')
    assert.match(def.os.loader?.path ?? '', /OVMF_CODE/)
    assert.match(def.os.nvram?.template ?? '', /OVMF_VARS/)
  }
})
