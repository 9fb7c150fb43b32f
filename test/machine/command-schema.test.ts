import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { SchemaInfo } from '../../src/machine/capabilities-schema.js'
import { QmpSchema } from '../support/qmp-schema.js'
import { startQemu, withoutMachine } from './command-qemu.js'

/** A command whose argument is a union with a base, one of its variants a union itself, an alternate and a list of itself. */
const entities: SchemaInfo[] = [
  { 'meta-type': 'command', name: 'do', 'arg-type': '1', 'ret-type': '0' },
  { 'meta-type': 'event', name: 'DONE', 'arg-type': '5' },
  { 'meta-type': 'builtin', name: 'str', 'json-type': 'string' },
  { 'meta-type': 'builtin', name: 'int', 'json-type': 'int' },
  { 'meta-type': 'builtin', name: 'null', 'json-type': 'null' },
  { 'meta-type': 'enum', name: '2', values: ['a', 'b', 'c'] },
  { 'meta-type': 'enum', name: '8', values: ['x'] },
  {
    ...{ 'meta-type': 'object', name: '1', tag: 'kind' },
    members: [
      { name: 'kind', type: '2' },
      { name: 'child', type: '6', default: null },
    ],
    variants: [
      { case: 'a', type: '3' },
      { case: 'b', type: '4' },
    ],
  },
  { 'meta-type': 'object', name: '3', members: [{ name: 'size', type: 'int' }] },
  {
    ...{ 'meta-type': 'object', name: '4', tag: 'sub', members: [{ name: 'sub', type: '8' }] },
    variants: [{ case: 'x', type: '5' }],
  },
  { 'meta-type': 'object', name: '5', members: [{ name: 'name', type: 'str' }] },
  { 'meta-type': 'alternate', name: '6', members: [{ type: '7' }, { type: 'null' }] },
  { 'meta-type': 'array', name: '7', 'element-type': '1' },
]

const accepted: object[] = [
  { kind: 'a', size: 1 },
  { kind: 'c' },
  { kind: 'b', sub: 'x', name: 'n' },
  { kind: 'c', child: null },
  { kind: 'c', child: [{ kind: 'a', size: 2, child: [] }] },
]
const refused: [object, RegExp][] = [
  [{}, /'kind'/],
  [{ kind: 'd' }, /allowed values/],
  [{ kind: 'a' }, /'size'/],
  [{ kind: 'a', size: 1.5 }, /integer/],
  [{ kind: 'c', size: 1 }, /additional/],
  [{ kind: 'b', sub: 'x' }, /'name'/],
  [{ kind: 'b', sub: 'x', name: 'n', size: 1 }, /additional/],
  [{ kind: 'c', child: [{ kind: 'a' }] }, /child\/0.*'size'/],
]

test('unions, alternates and recursion of the introspected types are checked', () => {
  const schema = new QmpSchema(entities)
  for (const args of accepted) assert.deepEqual(schema.checkCommand('do', args), [], JSON.stringify(args))
  for (const [args, words] of refused) assert.match(schema.checkCommand('do', args).join('\n'), words)
  assert.deepEqual(schema.checkEvent('DONE', { name: 'x' }), [])
  assert.match(schema.checkEvent('DONE').join(), /'name'/)
  assert.match(schema.checkCommand('undo').join(), /no command 'undo'/)
  assert.match(schema.checkEvent('do').join(), /no event 'do'/)
})

/** What QEMU itself answers, by a run of the command, to arguments that fit its schema and to some that do not. */
const cases: [string, object, boolean][] = [
  ['query-status', {}, true],
  ['query-status', { nothing: 1 }, false],
  ['blockdev-add', { driver: 'null-co', 'node-name': 'a', size: 65536 }, true],
  ['blockdev-add', { driver: 'null-co', 'node-name': 'b', size: 'large' }, false],
  ['blockdev-add', { driver: 'null-co', 'node-name': 'b', filename: '/x' }, false],
  ['blockdev-add', { driver: 'no such driver', 'node-name': 'b' }, false],
  ['blockdev-add', { driver: 'raw', 'node-name': 'c', file: { driver: 'null-co', size: 512 } }, true],
  ['blockdev-add', { driver: 'raw', 'node-name': 'd' }, false],
  ['object-add', { 'qom-type': 'iothread', id: 'io' }, true],
  ['object-add', { 'qom-type': 'iothread' }, false],
  ['netdev_add', { type: 'user', id: 'n', net: '10.0.0.0/24' }, true],
  ['netdev_add', { type: 'user', id: 'n2', nett: '10.0.0.0/24' }, false],
]

test('the checker and QEMU itself agree on what is valid', async (t) => {
  const qemu = await startQemu(t, withoutMachine)
  if (!qemu) return
  const schema = new QmpSchema(await qemu.execute<SchemaInfo[]>('query-qmp-schema'))
  for (const [command, args, valid] of cases) {
    const what = `${command} ${JSON.stringify(args)}`
    assert.equal(schema.checkCommand(command, args).length === 0, valid, what)
    const answer: boolean = await qemu.execute(command, args).then(
      () => true,
      () => false,
    )
    assert.equal(answer, valid, `QEMU, ${what}`)
  }
})

test('device_add may have properties that the schema does not know', async (t) => {
  const qemu = await startQemu(t, withoutMachine)
  if (!qemu) return
  const schema = new QmpSchema(await qemu.execute<SchemaInfo[]>('query-qmp-schema'))
  assert.deepEqual(schema.checkCommand('device_add', { driver: 'virtio-blk-pci', id: 'x', drive: 'y' }), [])
  assert.notDeepEqual(schema.checkCommand('device_add', { id: 'x' }), [])
})
