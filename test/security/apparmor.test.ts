import assert from 'node:assert/strict'
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { test, type TestContext } from 'node:test'
import { native } from '../../src/native.js'
import { profileText } from '../../src/security/apparmor-profile.js'
import { apparmorDriver } from '../../src/security/apparmor.js'
import { SecurityStack } from '../../src/security/security-stack.js'
import { run } from '../../src/util/run.js'
import { findProgram, requires } from '../support/requires.js'
import { definition, scratchFile, target, TestJournal } from './support.js'

/** The kernel is asked for nothing: what would be loaded is compiled by the real parser, and kept. */
function offline(t: TestContext) {
  const folder = dirname(scratchFile(t))
  const directory = join(folder, 'profiles')
  const loads: { action: string; profile: string; rules: string[] }[] = []
  const stack = new SecurityStack(
    [
      apparmorDriver({
        directory,
        async load(action, file) {
          loads.push({
            action,
            profile: readFileSync(file, 'utf8'),
            rules: readFileSync(`${file}.files`, 'utf8').trimEnd().split('\n'),
          })
          if (findProgram('apparmor_parser') !== undefined) await compile(file)
        },
      }),
    ],
    () => undefined,
  )
  const def = definition()
  def.emulator = process.execPath
  return { folder, directory, loads, stack, def, journal: new TestJournal() }
}

const compile = (file: string): Promise<unknown> =>
  run('apparmor_parser', ['--skip-kernel-load', '--skip-cache', '--abort-on-error', file], { timeout: 30_000 })

test('a domain gets a profile of its own, which names every file that it may open, and which goes with it', async (t) => {
  const { folder, directory, loads, stack, def, journal } = offline(t)
  await stack.generateLabels(def, [])
  const name = `libvirt-${def.uuid}`
  assert.deepEqual(def.seclabels[0], {
    type: 'dynamic',
    model: 'apparmor',
    relabel: 'yes',
    implicit: true,
    label: name,
    imagelabel: name,
  })
  const [disk, base, log, runDir] = ['disk', 'ba"se*', 'log', 'run'].map((file) => join(folder, file))
  for (const path of [disk, base, log]) writeFileSync(path ?? '', '')
  mkdirSync(runDir ?? '')
  await stack.setImageLabel(def, target(disk ?? ''), journal)
  await stack.setImageLabel(def, target(base ?? '', { kind: 'backing', readonly: true }), journal)
  await stack.setImageLabel(def, target(log ?? '', { kind: 'log' }), journal)
  await stack.setImageLabel(def, target(runDir ?? '', { kind: 'runtime' }), journal)
  assert.equal(loads.length, 0)

  assert.deepEqual(await stack.processLabel(def), { apparmorProfile: name })
  await stack.labelsSet(def, def.emulator ?? '')
  assert.equal(loads.length, 1)
  assert.match(loads[0]?.profile ?? '', new RegExp(`^profile "${name}" flags=\\(attach_disconnected\\) \\{$`, 'm'))
  assert.deepEqual(loads[0]?.rules, [
    `  "${folder}/disk" rwk,`,
    `  "${folder}/ba\\"se\\*" rk,`,
    `  "${folder}/log" w,`,
    `  "${folder}/run/" rw, "${folder}/run/**" rwk,`,
  ])

  // a stream has ended: the profile of the running QEMU shrinks
  const entry = journal.entries.find(({ target: { kind } }) => kind === 'backing')
  assert.ok(entry)
  await stack.restore(def, [entry], journal)
  assert.equal(loads.length, 2)
  assert.equal(loads[1]?.rules.length, 3)

  await stack.restore(def, [...journal.entries], journal)
  await stack.releaseLabels(def)
  assert.deepEqual(
    loads.map(({ action }) => action),
    ['replace', 'replace', 'remove'],
  )
  assert.deepEqual(readdirSync(directory), [])
})

test('the profile is what the real parser takes, with hostile names of domains and files', async (t) => {
  if (!requires(t, 'program:apparmor_parser')) return
  const { folder, stack, def, journal, loads } = offline(t)
  def.name = 'a\n} profile other { capability, }'
  for (const name of ['a b', '[c]{d,e}', 'x, ** rwx', 'new\nline', '@{HOME}', 'back\\slash', '^', 'ümlaut']) {
    writeFileSync(join(folder, name), '')
    if (!existsSync(join(folder, 'made'))) await stack.generateLabels(def, [])
    writeFileSync(join(folder, 'made'), '')
    await stack.setImageLabel(def, target(join(folder, name)), journal)
  }
  await stack.labelsSet(def, def.emulator ?? '')
  const file = join(folder, 'profiles', `libvirt-${def.uuid}`)
  const { stdout } = await run('apparmor_parser', ['--names', file])
  assert.deepEqual(stdout.trimEnd().split('\n'), [`libvirt-${def.uuid}`])
  assert.equal(loads.length, 1)
})

test('a static label is the profile of the administrator: none is written', async (t) => {
  const { directory, loads, stack, folder, journal } = offline(t)
  const def = definition([{ type: 'static', model: 'apparmor', label: 'my-vm', relabel: 'yes' }])
  await stack.generateLabels(def, [])
  await stack.setImageLabel(def, target(join(folder, 'image')), journal)
  assert.deepEqual(await stack.processLabel(def), { apparmorProfile: 'my-vm' })
  await stack.labelsSet(def, def.emulator ?? '')
  await stack.releaseLabels(def)
  assert.deepEqual([loads, existsSync(directory), journal.entries], [[], false, []])
})

test('with libvirt on the host its own abstraction is used', () => {
  const text = profileText(definition(), 'p', '/f', { binary: '/usr/bin/qemu', hasAbstraction: true })
  assert.match(text, /#include <abstractions\/libvirt-qemu>/)
  assert.doesNotMatch(text, /\/dev\/kvm/)
})

test('a process that is started with the profile may open what it names, and nothing else', async (t) => {
  if (!requires(t, 'root', 'apparmor', 'program:apparmor_parser')) return
  const folder = dirname(scratchFile(t))
  const stack = new SecurityStack([apparmorDriver()], () => undefined)
  await stack.probe()
  const def = definition()
  def.emulator = '/bin/cat'
  const journal = new TestJournal()
  writeFileSync(join(folder, 'secret'), 'secret')
  await stack.generateLabels(def, [])
  t.after(() => stack.releaseLabels(def))
  await stack.setImageLabel(def, target(join(folder, 'image')), journal)
  const label = await stack.processLabel(def)
  await stack.labelsSet(def, def.emulator ?? '')
  const exitOf = (path: string): Promise<number | null> =>
    new Promise((resolve) => {
      const fds = [0, 1, 2].map((fd) => ({ source: fd, target: fd }))
      const pid = native.spawn({ file: '/bin/cat', args: ['cat', path], env: {}, fds, ...label })
      native.watchProcess(pid, ({ code }) => resolve(code))
    })
  assert.equal(await exitOf(join(folder, 'image')), 0)
  assert.equal(await exitOf(join(folder, 'secret')), 1)
})

test('where the kernel has no AppArmor the driver says so', async (t) => {
  if (existsSync('/sys/module/apparmor/parameters/enabled')) t.skip('the kernel of this host knows AppArmor')
  else assert.match((await apparmorDriver().probe()) ?? '', /no AppArmor/)
})
