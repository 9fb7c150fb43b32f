import assert from 'node:assert/strict'
import { test } from 'node:test'
import { benches } from '../bench/all.js'
import { MiB, type Bench } from '../bench/bench.js'
import { inTurn, markdown, median, ratio } from '../bench/report.js'
import { mayUnshare } from './support/libvirtd.js'
import { requires } from './support/requires.js'

function benchNamed(name: string): Bench {
  const found = benches[name]
  assert.ok(found, name)
  return found.bench
}

/** Of a table of numbers: every cell that should hold one does. */
function assertNumbers(rows: readonly (readonly string[])[], column: number): void {
  for (const row of rows) assert.match(row[column] ?? '', /^\d/, row.join(' | '))
}

test('ways take turns, and a ratio is the median of those of the rounds', async () => {
  const order: string[] = []
  const way = (name: string, times: number[]) => ({
    name,
    run: () => {
      order.push(name)
      return Promise.resolve(times.shift() ?? NaN)
    },
  })
  const { times, cpu } = await inTurn([way('a', [10, 20, 40]), way('b', [20, 60, 20])], 3)
  assert.deepEqual(order, ['a', 'b', 'b', 'a', 'a', 'b'])
  assert.deepEqual(ratio(times, 'a', 'b'), { median: 2, text: '2.00 (0.50–3.00)' })
  assert.equal(cpu.size, 0)
  assert.equal(median([4, 1, 3, 2]), 2.5)
})

test('a table is Markdown', () => {
  const table = { title: 'T', head: ['a', 'bcde'], rows: [['1', '2']], notes: ['note'] }
  assert.equal(markdown(table), '### T\n\n| a   | bcde |\n| --- | ---- |\n| 1   | 2    |\n\nnote\n')
})

test('the benchmark of streams runs and tells of every way', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-nbd', 'program:nbdkit', 'program:nbdcopy')) return
  const tables = await benchNamed('stream')(t, { rounds: 1, size: 8 * MiB })
  assert.deepEqual(
    tables.map(({ rows }) => rows.length),
    [6, 6, 7, 7],
  )
  for (const { rows } of tables) {
    assertNumbers(rows, 3)
    assertNumbers(rows, 4)
  }
})

test('the benchmark of engines runs on every base', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:nbdkit')) return
  const [table] = await benchNamed('engines')(t, { rounds: 1, size: 8 * MiB })
  assert.equal(table?.rows.length, 6)
  for (const column of [1, 2, 3, 4, 5]) assertNumbers(table.rows, column)
})

test('the benchmark of idle streams runs and tells how long the guest waits, and how fast they are', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const [table] = await benchNamed('idle')(t, { rounds: 1, size: 16 * MiB })
  assert.ok(table !== undefined)
  assert.deepEqual(
    table.rows.map(([way]) => way),
    ['no stream', 'full', 'idle'],
  )
  for (const column of [1, 2]) assertNumbers(table.rows, column)
  for (const column of [3, 4, 5, 6]) assertNumbers(table.rows.slice(1), column)
})

test('the benchmark of starts runs and tells of every link', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-nbd', 'program:nbdkit')) return
  const [table] = await benchNamed('start')(t, { rounds: 1, size: 16 * MiB })
  assert.equal(table?.rows.length, 2)
  for (const column of [1, 3, 4]) assertNumbers(table.rows, column)
})

test('the benchmark of start-up runs', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64')) return
  const [table] = await benchNamed('overhead')(t, { rounds: 1, size: MiB })
  assert.equal(table?.rows.length, 3)
  assertNumbers(table.rows, 3)
})

test('the benchmark of the tunnel runs on every link', async (t) => {
  if (!requires(t, 'program:openssl')) return
  const [table] = await benchNamed('tunnel')(t, { rounds: 1, size: 2 * MiB })
  // only loopback where nobody lets us make namespaces
  assert.ok(table?.rows.length === 16 || table?.rows.length === 4)
  for (const column of [3, 4, 5, 6, 7]) assertNumbers(table.rows, column)
})

test('the benchmark of real libvirt runs, and tells of every way', async (t) => {
  if (!requires(t, 'root', 'program:libvirtd', 'program:virsh', 'file:/usr/lib/python3/dist-packages/libvirt.py'))
    return
  if (!(await mayUnshare())) {
    t.skip('needs mount namespaces')
    return
  }
  const [table] = await benchNamed('libvirt')(t, { rounds: 1, size: 20 * MiB })
  assert.ok(table)
  const ours = table.rows.filter(([, way]) => way === 'virstream').map(([what]) => what)
  assert.deepEqual(ours, [
    '20 domains, each with its XML',
    'state, one call after the other',
    'state, 64 calls in flight',
    'state of each of 20 domains',
    'from a call to its event',
    "from another's call to its event",
  ])
  for (const what of ours) assert.ok(table.rows.filter(([row]) => row === what).length > 1, what)
  assertNumbers(table.rows, 3)
})

test('the benchmark of domain XML runs', async (t) => {
  const [table] = await benchNamed('xml')(t, { rounds: 1, size: MiB })
  assert.ok(table !== undefined && table.rows.length >= 3)
  assertNumbers(table.rows, 1)
})
