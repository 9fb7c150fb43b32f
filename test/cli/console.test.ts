import assert from 'node:assert/strict'
import { test } from 'node:test'
import { cli } from './run.js'

test('console sends what it reads, prints what the guest says, and ends after its input', async () => {
  const { status, stdout, stderr } = await cli(['console', 'test'], { stdin: 'hello guest\n' })
  assert.equal(stderr, '')
  assert.equal(status, 0)
  assert.match(stdout, /^Connected to domain 'test'\nEscape character is \^\] \(Ctrl \+ \]\)\nhello guest\n/)
})

test('a console that is not there is an error', async () => {
  const { status, stderr } = await cli(['console', 'test', '--devname', 'serial7'])
  assert.equal(status, 1)
  assert.match(
    stderr,
    /^error: Failed to open the console of domain 'test'\nerror: cannot find character device 'serial7'/,
  )
})
