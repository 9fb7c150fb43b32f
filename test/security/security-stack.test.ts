import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { SecurityDriver } from '../../src/security/security-driver.js'
import { SecurityStack } from '../../src/security/security-stack.js'
import { definition, target, TestJournal } from './support.js'

/** A driver that says what is done with it; `fails` names what it rejects. */
function spy(name: string, said: string[], fails: readonly string[] = []): SecurityDriver {
  const say = (what: string): void => {
    if (fails.includes(what)) throw new Error(`${name} cannot ${what}`)
    said.push(`${name} ${what}`)
  }
  const later = (what: string): Promise<void> =>
    new Promise((resolve) => {
      say(what)
      resolve()
    })
  return {
    name,
    probe: () => Promise.resolve(fails.includes('probe') ? 'it is not there' : undefined),
    generateLabel: () => later('generate'),
    async setImageLabel(_def, { path }, note) {
      note(`${name} knew ${path}`)
      await later(`set ${path}`)
    },
    restoreImageLabel: (_def, _target, state, complete) => later(`restore '${state}'${complete ? '' : ' perhaps'}`),
    setSocketLabel: () => say('socket'),
    clearSocketLabel: () => say('clear'),
    processLabel: () => Promise.resolve(name === 'a' ? { uid: 1, gid: 2 } : { selinuxLabel: name }),
    releaseLabel: () => later('release'),
  }
}
const silent = (): void => undefined

test('labels are set in the order of the drivers and restored in reverse, newest image first', async () => {
  const said: string[] = []
  const stack = new SecurityStack([spy('a', said), spy('b', said)], silent)
  const def = definition()
  const journal = new TestJournal()
  await stack.generateLabels(def, [])
  await stack.setImageLabel(def, target('/1'), journal)
  await stack.setImageLabel(def, target('/2'), journal)
  stack.makeSocket(def, () => said.push('made'))
  assert.deepEqual(await stack.processLabel(def), { uid: 1, gid: 2, selinuxLabel: 'b' })
  await stack.restore(def, [...journal.entries], journal)
  await stack.releaseLabels(def)
  assert.deepEqual(said, [
    ...['a generate', 'b generate', 'a set /1', 'b set /1', 'a set /2', 'b set /2'],
    ...['a socket', 'b socket', 'made', 'b clear', 'a clear'],
    ...["b restore 'b knew /2'", "a restore 'a knew /2'", "b restore 'b knew /1'", "a restore 'a knew /1'"],
    ...['b release', 'a release'],
  ])
  assert.deepEqual(journal.entries, [])
  assert.deepEqual(journal.saved.at(-1), [])
})

test('what a driver notes is written down before it goes on, as not complete', async () => {
  const stack = new SecurityStack([spy('a', [])], silent)
  const journal = new TestJournal()
  await stack.setImageLabel(definition(), target('/1'), journal)
  const states = journal.saved.map((entries) => entries.map(({ state, complete }) => ({ state, complete })))
  assert.deepEqual(states, [[{ state: 'a knew /1', complete: false }]])
  assert.equal(journal.entries[0]?.complete, true)
})

test('when a driver cannot label an image, those before it restore theirs', async () => {
  const said: string[] = []
  const stack = new SecurityStack([spy('a', said), spy('b', said), spy('c', said, ['set /1'])], silent)
  const journal = new TestJournal()
  await assert.rejects(stack.setImageLabel(definition(), target('/1'), journal), /c cannot set \/1/)
  assert.deepEqual(said, ['a set /1', 'b set /1', "b restore 'b knew /1'", "a restore 'a knew /1'"])
  assert.deepEqual(journal.entries, [])
})

test('when a driver has no label for a domain, those before it take theirs back', async () => {
  const said: string[] = []
  const stack = new SecurityStack([spy('a', said), spy('b', said, ['generate'])], silent)
  await assert.rejects(stack.generateLabels(definition(), []), /b cannot generate/)
  assert.deepEqual(said, ['a generate', 'a release'])
})

test('a label that cannot be restored is reported, and the others are restored all the same', async () => {
  const said: string[] = []
  const warnings: string[] = []
  const stack = new SecurityStack([spy('a', said), spy('b', said, ["restore 'b knew /1'"])], (text) =>
    warnings.push(text),
  )
  const journal = new TestJournal()
  await stack.setImageLabel(definition(), target('/1'), journal)
  said.length = 0
  await stack.restore(definition(), [...journal.entries], journal)
  assert.deepEqual(said, ["a restore 'a knew /1'"])
  assert.deepEqual(warnings, ["the label of '/1' is not restored: b cannot restore 'b knew /1'"])
})

test('socket labels are cleared when the socket cannot be made, and only those that were set', () => {
  const said: string[] = []
  const refuse = (): never => {
    throw new Error('no socket')
  }
  assert.throws(() => new SecurityStack([spy('a', said)], silent).makeSocket(definition(), refuse), /no socket/)
  assert.deepEqual(said, ['a socket', 'a clear'])
  said.length = 0
  const half = new SecurityStack([spy('a', said), spy('b', said, ['socket'])], silent)
  assert.throws(() => half.makeSocket(definition(), refuse), /b cannot socket/)
  assert.deepEqual(said, ['a socket', 'a clear'])
})

test('hooks that a driver does not have are skipped', async () => {
  const bare: SecurityDriver = { name: 'bare', probe: () => Promise.resolve(undefined) }
  const stack = new SecurityStack([bare], silent)
  const def = definition()
  const journal = new TestJournal()
  await stack.probe()
  await stack.generateLabels(def, [])
  await stack.setImageLabel(def, target('/1'), journal)
  assert.deepEqual(journal.entries, [])
  assert.deepEqual(await stack.processLabel(def), {})
  assert.equal(
    stack.makeSocket(def, () => 7),
    7,
  )
})

test('a driver that cannot work here says why', async () => {
  const stack = new SecurityStack([spy('a', []), spy('b', [], ['probe'])], silent)
  await assert.rejects(stack.probe(), /security driver 'b' cannot be used: it is not there/)
  assert.throws(() => new SecurityStack([spy('a', []), spy('a', [])], silent), /'a' is given twice/)
})

test('each driver has a <seclabel>: a dynamic one where there is none, the first one that has no model', async () => {
  const stack = new SecurityStack([spy('a', []), spy('b', [])], silent)
  const def = definition([{ type: 'static', label: 'x' }])
  await stack.generateLabels(def, [])
  assert.deepEqual(def.seclabels, [
    { type: 'static', label: 'x', model: 'a' },
    { type: 'dynamic', model: 'b', relabel: 'yes', implicit: true },
  ])
  const code = 'VIR_ERR_CONFIG_UNSUPPORTED'
  await assert.rejects(stack.generateLabels(definition([{ model: 'smack', label: 'x' }]), []), {
    code,
    message: "there is no security driver for <seclabel model='smack'>",
  })
  await assert.rejects(stack.generateLabels(definition([{ model: 'a', relabel: 'no' }]), []), { code })
})

test('without drivers a definition keeps the labels that it has, whatever they are', async () => {
  const def = definition([{ model: 'smack', type: 'static', label: 'x' }])
  await new SecurityStack([], silent).generateLabels(def, [])
  assert.deepEqual(def.seclabels, [{ model: 'smack', type: 'static', label: 'x' }])
})

test('what a driver left that is not asked for any more is restored and released by one that is known', async () => {
  const said: string[] = []
  const journal = new TestJournal()
  const def = definition()
  await new SecurityStack([spy('a', said)], silent).setImageLabel(def, target('/1'), journal)
  const later = new SecurityStack([], silent, [spy('a', said)])
  await later.restore(def, [...journal.entries], journal)
  await later.releaseLabels(def)
  assert.deepEqual(said, ['a set /1', "a restore 'a knew /1'", 'a release'])

  const warnings: string[] = []
  await new SecurityStack([spy('a', said)], silent).setImageLabel(def, target('/1'), journal)
  await new SecurityStack([], (text) => warnings.push(text)).restore(def, [...journal.entries], journal)
  assert.deepEqual(warnings, ["'/1' keeps its label of security driver 'a', which is not here"])
})
