import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { test } from 'node:test'
import { parseCpuset, pinProcess } from '../../src/machine/cpu-affinity.js'
import { requires } from '../support/requires.js'

for (const [cpuset, cpus] of [
  ['0', [0]],
  ['0-3', [0, 1, 2, 3]],
  ['0-3,^2', [0, 1, 3]],
  ['8, 1-2', [1, 2, 8]],
] as const) {
  test(`the set '${cpuset}' is ${cpus.join(' ')}`, () => {
    assert.deepEqual(parseCpuset(cpuset), cpus)
  })
}

test('what is no set of CPUs is refused', () => {
  for (const cpuset of ['', 'a', '3-1', '^1-2', '0,^0', '4096', '1;2', '-1']) {
    assert.throws(() => parseCpuset(cpuset), { code: 'VIR_ERR_XML_ERROR' }, cpuset)
  }
})

test('a process is kept on the CPUs of a set that the host has', async (t) => {
  if (!requires(t, 'program:taskset')) return
  const child = spawn('sleep', ['60'])
  t.after(() => child.kill())
  const pid = child.pid ?? 0
  await pinProcess(pid, '0,1023')
  assert.match(readFileSync(`/proc/${pid}/status`, 'utf8'), /Cpus_allowed_list:\t0\n/)
  await assert.rejects(pinProcess(pid, '1023'), { code: 'VIR_ERR_SYSTEM_ERROR' })
})
