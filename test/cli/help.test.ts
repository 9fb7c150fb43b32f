import assert from 'node:assert/strict'
import { test } from 'node:test'
import { specs } from '../../src/cli/program.js'
import { cli } from './run.js'

test('every command has help like a manual page: what, every option, examples, exit status', async () => {
  for (const spec of specs) {
    const { status, stdout } = await cli([spec.name, '--help'])
    assert.equal(status, 0)
    const titles = stdout.split('\n').filter((line) => /^[A-Z]/.test(line))
    const wanted = ['NAME', 'SYNOPSIS', 'DESCRIPTION', 'OPTIONS', 'EXAMPLES', 'EXIT STATUS', 'SEE ALSO']
    assert.deepEqual(
      wanted.filter((title) => !titles.includes(title)),
      [],
      spec.name,
    )
    for (const [flags] of spec.options) assert.ok(stdout.includes(`  ${flags}`), `${spec.name}: ${flags}`)
    for (const [command] of spec.examples) assert.ok(command.startsWith(spec.name), `${spec.name}: ${command}`)
  }
})

test('help lines fit a terminal of 80 columns', async () => {
  for (const spec of specs) {
    const { stdout } = await cli([spec.name, '--help'])
    const examples = spec.examples.map(([command]) => `  virstream ${command}`)
    for (const line of stdout.split('\n')) if (!examples.includes(line)) assert.ok(line.length <= 80, line)
  }
})

test('commands that are referred to exist', () => {
  const names = specs.map(({ name }) => name)
  assert.equal(new Set(names).size, names.length)
  for (const { name, seeAlso } of specs)
    for (const other of seeAlso) assert.ok(names.includes(other) && other !== name, `${name} refers to ${other}`)
})

test('the help of the program names every command, in its group', async () => {
  const { stdout, status } = await cli(['--help'])
  assert.equal(status, 0)
  for (const { name, summary } of specs) assert.match(stdout, new RegExp(`^ {4}${name} +${summary.slice(0, 10)}`, 'm'))
  assert.equal((await cli(['help', 'list'])).stdout, (await cli(['list', '--help'])).stdout)
})

test('without a command the help is an error', async () => {
  const { status, stderr } = await cli([])
  assert.equal(status, 1)
  assert.match(stderr, /^NAME\n/)
})

test('the version is that of the package', async () => {
  assert.match((await cli(['--version'])).stdout, /^\d+\.\d+\.\d+\n$/)
})
