import assert from 'node:assert/strict'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { test } from 'node:test'
import type { SeclabelDef } from '../../src/conf/domain-def.js'
import { native } from '../../src/native.js'
import { freeLevel, rangeOf, readContexts, selinuxDriver } from '../../src/security/selinux.js'
import type { LabelTarget } from '../../src/security/security-driver.js'
import { SecurityStack } from '../../src/security/security-stack.js'
import { requires } from '../support/requires.js'
import { definition, scratchFile, target, TestJournal } from './support.js'

const FORMER = 'system_u:object_r:user_home_t:s0'
const CONTENT = /^system_u:object_r:virt_content_t:s0$/

const labelOf = (path: string): string | undefined => {
  const value = native.getxattr(path, 'security.selinux')
  return value && Buffer.from(value).toString().replace(/\0$/, '')
}
/** Without a policy the kernel takes any label of a file that it does not use itself. */
const setLabel = (path: string, label: string): void =>
  native.setxattr(path, 'security.selinux', Buffer.from(`${label}\0`))

/** One domain with a static label, for which nothing is asked of the kernel. */
async function domain(label = 'system_u:system_r:svirt_t:s0:c5,c9', more: Partial<SeclabelDef> = {}) {
  const stack = new SecurityStack([selinuxDriver()], () => undefined)
  const def = definition([{ type: 'static', model: 'selinux', relabel: 'yes', label, ...more }])
  const journal = new TestJournal()
  await stack.generateLabels(def, [])
  return {
    def,
    stack,
    set: (image: LabelTarget) => stack.setImageLabel(def, image, journal),
    end: () => stack.restore(def, [...journal.entries], journal),
  }
}

test('images get the label of what the domain does with them, and their own one back', async (t) => {
  if (!requires(t, 'root')) return
  const one = await domain()
  const uses: [Partial<LabelTarget>, RegExp][] = [
    [{}, /^system_u:object_r:svirt_image_t:s0:c5,c9$/],
    [{ readonly: true }, CONTENT],
    [{ kind: 'backing', readonly: true }, CONTENT],
    [{ kind: 'boot', readonly: true }, CONTENT],
    [{ shared: true }, /^system_u:object_r:svirt_image_t:s0$/],
    [{ kind: 'nvram' }, /^system_u:object_r:svirt_image_t:s0:c5,c9$/],
  ]
  for (const [use, wanted] of uses) {
    const path = scratchFile(t)
    setLabel(path, FORMER)
    await one.set(target(path, use))
    assert.match(labelOf(path) ?? '', wanted, JSON.stringify(use))
    assert.equal(Buffer.from(native.getxattr(path, 'trusted.libvirt.security.selinux') ?? []).toString(), FORMER)
    await one.end()
    assert.equal(labelOf(path), FORMER)
    assert.deepEqual(
      native.listxattr(path).filter((name) => name.startsWith('trusted')),
      [],
    )
  }
})

test('a base that two domains read keeps its label until the second one has ended', async (t) => {
  if (!requires(t, 'root')) return
  const path = scratchFile(t)
  setLabel(path, FORMER)
  const [one, two] = [await domain(), await domain('system_u:system_r:svirt_t:s0:c1,c2')]
  const base = target(path, { kind: 'backing', readonly: true })
  await one.set(base)
  await two.set(base)
  await one.end()
  assert.match(labelOf(path) ?? '', CONTENT)
  await assert.rejects(one.set(target(path)), { code: 'VIR_ERR_OPERATION_INVALID' })
  await two.end()
  assert.equal(labelOf(path), FORMER)
})

test('an image that had no label has none afterwards', async (t) => {
  if (!requires(t, 'root')) return
  const path = scratchFile(t)
  if (labelOf(path) !== undefined) {
    t.skip('files have labels from their birth on here')
    return
  }
  const one = await domain()
  await one.set(target(path))
  assert.equal(labelOf(path), 'system_u:object_r:svirt_image_t:s0:c5,c9')
  await one.end()
  assert.equal(labelOf(path), undefined)
})

test("a label of the image itself counts, and relabel='no'", async (t) => {
  if (!requires(t, 'root')) return
  const path = scratchFile(t)
  setLabel(path, FORMER)
  const own = 'system_u:object_r:svirt_image_t:s0:c77'
  const one = await domain()
  await one.set(target(path, { seclabels: [{ model: 'selinux', label: own }] }))
  assert.equal(labelOf(path), own)
  await one.end()
  await one.set(target(path, { kind: 'backing', seclabels: [{ model: 'selinux', relabel: 'no' }] }))
  assert.equal(labelOf(path), FORMER)
  const still = await domain(undefined, { relabel: 'no' })
  await still.set(target(path))
  assert.equal(labelOf(path), FORMER)
  assert.equal(still.def.seclabels[0]?.imagelabel, undefined)
  await still.set(target(path, { kind: 'runtime' }))
  assert.equal(labelOf(path), 'system_u:object_r:svirt_image_t:s0:c5,c9')
})

test('a static label is what the process gets, as it is; one that is none is refused', async () => {
  const one = await domain()
  assert.deepEqual(await one.stack.processLabel(one.def), { selinuxLabel: 'system_u:system_r:svirt_t:s0:c5,c9' })
  assert.equal(one.def.seclabels[0]?.imagelabel, 'system_u:object_r:svirt_image_t:s0:c5,c9')
  await assert.rejects(domain('no-label'), { code: 'VIR_ERR_INVALID_ARG', message: /'no-label'/ })
})

test('a pair of categories is given out once, from our own range, until there are none', () => {
  const own = { sensitivity: 's0', first: 10, last: 13 }
  const taken = new Set<string>()
  for (let i = 0; i < 6; i++) {
    const level = freeLevel(taken, own)
    const [, a, b] = /^s0:c(\d+),c(\d+)$/.exec(level) ?? []
    assert.ok(10 <= Number(a) && Number(a) < Number(b) && Number(b) <= 13, level)
    taken.add(level.slice('s0:'.length))
  }
  assert.equal(taken.size, 6)
  assert.throws(() => freeLevel(taken, own), { code: 'VIR_ERR_INTERNAL_ERROR' })
})

test('our own range is read from our label', () => {
  assert.deepEqual(rangeOf('system_u:system_r:virtd_t:s0-s0:c0.c1023'), { sensitivity: 's0', first: 0, last: 1023 })
  assert.deepEqual(rangeOf('u:r:t:s1-s2:c100.c200'), { sensitivity: 's1', first: 100, last: 200 })
  assert.deepEqual(rangeOf('unconfined'), { sensitivity: 's0', first: 0, last: 1023 })
})

test('the types come from the policy where it names any', (t) => {
  const folder = dirname(scratchFile(t))
  assert.equal(readContexts(folder).content, 'system_u:object_r:virt_content_t:s0')
  mkdirSync(join(folder, 'mine/contexts'), { recursive: true })
  writeFileSync(join(folder, 'config'), '# of this host\nSELINUX=enforcing\nSELINUXTYPE=mine\n')
  writeFileSync(join(folder, 'mine/contexts/virtual_domain_context'), 'u:r:fast_t:s0\nu:r:slow_t:s0\n')
  writeFileSync(join(folder, 'mine/contexts/virtual_image_context'), 'u:object_r:own_t:s0\n')
  assert.deepEqual(readContexts(folder), {
    domain: 'u:r:fast_t:s0',
    emulated: 'u:r:slow_t:s0',
    file: 'u:object_r:own_t:s0',
    content: 'u:object_r:own_t:s0',
  })
})

test('dynamic labels differ between domains that run at once, and sockets get the label of their QEMU', async (t) => {
  if (!requires(t, 'root', 'selinux')) return
  const driver = selinuxDriver()
  const stack = new SecurityStack([driver], () => undefined)
  const [one, two] = [definition(), definition([], 'two', 'kvm')]
  await stack.generateLabels(one, [])
  await stack.generateLabels(two, [one])
  assert.notEqual(one.seclabels[0]?.label, two.seclabels[0]?.label)
  const created = stack.makeSocket(one, () => readFileSync('/proc/thread-self/attr/sockcreate', 'utf8'))
  assert.equal(created.replace(/\0$/, ''), one.seclabels[0]?.label)
  assert.equal(readFileSync('/proc/thread-self/attr/sockcreate', 'utf8').replace(/\0$/, ''), '')
})

test('where the kernel has no SELinux the driver says so', async (t) => {
  const reason = await selinuxDriver().probe()
  if (reason === undefined) t.skip('the kernel of this host has SELinux')
  else assert.match(reason, /no SELinux/)
})
