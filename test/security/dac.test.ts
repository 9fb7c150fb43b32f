import assert from 'node:assert/strict'
import { existsSync, lstatSync, rmSync, statSync, symlinkSync } from 'node:fs'
import { test } from 'node:test'
import type { SeclabelDef } from '../../src/conf/domain-def.js'
import { native } from '../../src/native.js'
import { dacDriver, type DacOptions } from '../../src/security/dac.js'
import type { LabelTarget } from '../../src/security/security-driver.js'
import { type LabelEntry, SecurityStack } from '../../src/security/security-stack.js'
import { requires } from '../support/requires.js'
import { definition, scratchFile, target, TestJournal } from './support.js'

const ATTRIBUTES = ['dac', 'ref_dac', 'timestamp_dac'].map((name) => `trusted.libvirt.security.${name}`)

const ownerOf = (path: string): string => `${statSync(path).uid}:${statSync(path).gid}`
const attribute = (path: string, name: string): string =>
  Buffer.from(native.getxattr(path, `trusted.libvirt.security.${name}`) ?? []).toString()
const attributesOf = (path: string): string[] => native.listxattr(path).filter((name) => ATTRIBUTES.includes(name))

/** One domain that runs with this driver. */
async function domain(options: DacOptions = { user: '+40107', group: '+40108' }, seclabels: SeclabelDef[] = []) {
  const warnings: string[] = []
  const stack = new SecurityStack([dacDriver(options)], (text) => warnings.push(text))
  const def = definition(seclabels)
  const journal = new TestJournal()
  await stack.generateLabels(def, [])
  return {
    def,
    stack,
    journal,
    warnings,
    set: (image: LabelTarget) => stack.setImageLabel(def, image, journal),
    end: (entries: readonly LabelEntry[] = [...journal.entries]) => stack.restore(def, entries, journal),
  }
}

test('an image is given to the user of QEMU, and back to its owner, who is written on it meanwhile', async (t) => {
  if (!requires(t, 'root')) return
  const path = scratchFile(t)
  const one = await domain()
  assert.deepEqual(one.def.seclabels[0], {
    type: 'dynamic',
    model: 'dac',
    relabel: 'yes',
    implicit: true,
    label: '+40107:+40108',
    imagelabel: '+40107:+40108',
  })
  assert.deepEqual(await one.stack.processLabel(one.def), { uid: 40107, gid: 40108, groups: [40108] })
  await one.set(target(path))
  assert.equal(ownerOf(path), '40107:40108')
  assert.equal(attribute(path, 'dac'), '+0:+0')
  assert.equal(attribute(path, 'ref_dac'), '1')
  assert.match(attribute(path, 'timestamp_dac'), /^\d{10}$/)
  await one.end()
  assert.equal(ownerOf(path), '0:0')
  assert.deepEqual(attributesOf(path), [])
})

test('an image that two domains use goes back to its owner when the last one ends', async (t) => {
  if (!requires(t, 'root')) return
  const path = scratchFile(t)
  const [one, two] = [await domain(), await domain()]
  await one.set(target(path, { kind: 'backing', readonly: true }))
  await two.set(target(path, { kind: 'backing', readonly: true }))
  assert.equal(attribute(path, 'ref_dac'), '2')
  await one.end()
  assert.equal(ownerOf(path), '40107:40108')
  await two.end()
  assert.equal(ownerOf(path), '0:0')
  assert.deepEqual(attributesOf(path), [])
})

test('an image that is in use by one user is not given to another', async (t) => {
  if (!requires(t, 'root')) return
  const path = scratchFile(t)
  const one = await domain()
  const other = await domain({}, [{ type: 'static', model: 'dac', relabel: 'yes', label: '+7:+7' }])
  await one.set(target(path))
  await assert.rejects(other.set(target(path)), { code: 'VIR_ERR_OPERATION_INVALID', message: /in use with label/ })
  assert.equal(attribute(path, 'ref_dac'), '1')
  assert.deepEqual(other.journal.entries, [])
  await one.end()
  assert.equal(ownerOf(path), '0:0')
})

test('a static label names the user, by number or by name', async (t) => {
  if (!requires(t, 'root')) return
  const path = scratchFile(t)
  const daemon = await domain({}, [{ type: 'static', model: 'dac', relabel: 'yes', label: 'daemon:bin' }])
  await daemon.set(target(path))
  assert.equal(ownerOf(path), '1:2')
  assert.equal((await daemon.stack.processLabel(daemon.def)).uid, 1)
  await daemon.end()
  for (const label of ['daemon', 'nobody-of-this-name:bin', 'daemon:', '+4294967295:+0'])
    await assert.rejects(domain({}, [{ type: 'static', model: 'dac', label }]), { code: 'VIR_ERR_INVALID_ARG' }, label)
  await assert.rejects(domain({}, [{ type: 'static', model: 'dac' }]), { code: 'VIR_ERR_XML_ERROR' })
})

test("relabel='no' of the domain, the image or its disk leaves the owner; what is made for the run changes all the same", async (t) => {
  if (!requires(t, 'root')) return
  const path = scratchFile(t)
  const still = await domain({}, [{ type: 'static', model: 'dac', label: '+40107:+40108' }])
  await still.set(target(path))
  assert.equal(ownerOf(path), '0:0')
  await still.set(target(path, { kind: 'runtime' }))
  assert.equal(ownerOf(path), '40107:40108')
  assert.deepEqual(still.journal.entries, [])

  const other = scratchFile(t)
  const one = await domain()
  await one.set(
    target(other, {
      seclabels: [
        { model: 'selinux', label: 'x' },
        { model: 'dac', relabel: 'no' },
      ],
    }),
  )
  assert.equal(ownerOf(other), '0:0')
  await one.set(
    target(other, {
      seclabels: [
        { model: 'dac', label: '+9:+9' },
        { model: 'dac', relabel: 'no' },
      ],
    }),
  )
  assert.equal(ownerOf(other), '9:9')
  await one.end()
  assert.equal(ownerOf(other), '0:0')
  const fixed = await domain({ user: '+40107', group: '+40108', dynamicOwnership: false })
  await fixed.set(target(other))
  assert.equal(ownerOf(other), '0:0')
})

test('with no memory on files exclusive images go back, those that others may use keep the user', async (t) => {
  if (!requires(t, 'root')) return
  const [own, base] = [scratchFile(t), scratchFile(t)]
  const one = await domain({ user: '+40107', group: '+40108', rememberOwner: false })
  await one.set(target(own))
  await one.set(target(base, { kind: 'backing', readonly: true }))
  assert.deepEqual([...attributesOf(own), ...attributesOf(base)], [])
  assert.equal(ownerOf(base), '40107:40108')
  await one.end()
  assert.equal(ownerOf(own), '0:0')
  assert.equal(ownerOf(base), '40107:40108')
})

test('what a process that died in the middle had only noted is restored without being counted', async (t) => {
  if (!requires(t, 'root')) return
  const path = scratchFile(t)
  const [one, two] = [await domain(), await domain()]
  await two.set(target(path))
  // as if the second domain had died between its note and the first change
  const state = (two.journal.saved[0]?.[0]?.state ?? '').replace('"users":0', '"users":1')
  await one.end([{ driver: 'dac', target: target(path), state, complete: false }])
  assert.equal(attribute(path, 'ref_dac'), '1')
  assert.equal(ownerOf(path), '40107:40108')
  // as if it had died after its count, before the entry was complete
  await two.end(two.journal.entries.map((entry) => ({ ...entry, complete: false })))
  assert.equal(ownerOf(path), '0:0')
  assert.deepEqual(attributesOf(path), [])
})

test('a memory from before the host has booted does not count', async (t) => {
  if (!requires(t, 'root')) return
  const path = scratchFile(t)
  const one = await domain()
  await one.set(target(path))
  native.setxattr(path, 'trusted.libvirt.security.timestamp_dac', Buffer.from('12345'))
  native.setxattr(path, 'trusted.libvirt.security.ref_dac', Buffer.from('5'))
  await one.end()
  assert.equal(ownerOf(path), '0:0')
  assert.deepEqual(attributesOf(path), [])
})

test('the file behind a symbolic link changes, and an image that is gone is no error', async (t) => {
  if (!requires(t, 'root')) return
  const path = scratchFile(t)
  symlinkSync(path, `${path}.link`)
  const one = await domain()
  await one.set(target(`${path}.link`))
  assert.equal(ownerOf(path), '40107:40108')
  assert.equal(lstatSync(`${path}.link`).uid, 0)
  rmSync(path)
  await one.end()
  assert.deepEqual(one.warnings, [])
  assert.equal(existsSync(path), false)
  await assert.rejects(one.set(target(path)), { code: 'VIR_ERR_SYSTEM_ERROR', message: /does not exist/ })
})

test('domains wait for each other, and for whoever else changes labels', async (t) => {
  if (!requires(t, 'root')) return
  const path = scratchFile(t)
  const domains = await Promise.all(Array.from({ length: 6 }, () => domain()))
  await Promise.all(domains.map((one) => one.set(target(path, { shared: true }))))
  assert.equal(attribute(path, 'ref_dac'), '6')
  await Promise.all(domains.map((one) => one.end()))
  assert.equal(ownerOf(path), '0:0')
})

test('who is not root, or names a user that is not there, is told at once', async () => {
  const reason = await dacDriver({ user: 'nobody-of-this-name' }).probe()
  assert.match(reason ?? '', /only root|there is no user 'nobody-of-this-name'/)
})
