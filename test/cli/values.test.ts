import assert from 'node:assert/strict'
import { test } from 'node:test'
import { defaultUri } from '../../src/cli/context.js'
import { parseBandwidth, parseCount, parseSize, UsageError, Values } from '../../src/cli/values.js'

test('a bandwidth is in MiB/s, in bytes/s, or in the unit that it names', () => {
  const MiB = 1024 * 1024
  assert.equal(parseBandwidth(undefined, false), 0)
  assert.equal(parseBandwidth('5', false), 5 * MiB)
  assert.equal(parseBandwidth('5', true), 5)
  assert.equal(parseBandwidth('512K', false), 512 * 1024)
  assert.equal(parseBandwidth('2m', true), 2 * MiB)
  assert.equal(parseBandwidth('1GiB', false), 1024 * MiB)
  for (const wrong of ['', '-1', '1.5', 'fast', '5X', '9999999999999999'])
    assert.throws(() => parseBandwidth(wrong, false), UsageError)
})

test('a size is in KiB, or in the unit that it names', () => {
  const sizes = {
    '5': 5120,
    '513B': 513,
    '2k': 2048,
    '2KB': 2000,
    '3MiB': 3 * 1024 * 1024,
    '1G': 1024 ** 3,
    '1TB': 1e12,
  }
  for (const [text, bytes] of Object.entries(sizes)) assert.equal(parseSize(text), bytes, text)
  for (const wrong of ['', '-1', '1.5', '5X', '5BiB', '9999999999999T'])
    assert.throws(() => parseSize(wrong), UsageError)
})

test('counts are whole numbers that a double holds', () => {
  assert.equal(parseCount('--offset', '0', 0), 0)
  for (const wrong of ['-1', '1.5', '0x10', '9007199254740993', ' 1', ''])
    assert.throws(() => parseCount('--offset', wrong, 0), UsageError)
  assert.throws(() => parseCount('--timeout', '0', 1), /--timeout must be a whole number of at least 1, not '0'/)
})

test('sizes in bytes are plain numbers, or say their unit', () => {
  const values = new Values({ offset: '513', unit: '2M', other: '5X' })
  assert.equal(values.bytes('offset'), 513)
  assert.equal(values.bytes('unit'), 2 * 1024 * 1024)
  assert.equal(values.bytes('absent'), undefined)
  assert.throws(
    () => values.bytes('other'),
    /--other must be a number of bytes, or a number with B, K, M, G or T, not '5X'/,
  )
})

test('options are asked for by their names', () => {
  const values = new Values({ keepNvram: true, base: '/x', timeout: '3' })
  assert.equal(values.flag('keep-nvram'), true)
  assert.equal(values.flag('nvram'), false)
  assert.equal(values.text('base'), '/x')
  assert.equal(values.seconds('timeout'), 3000)
  assert.equal(values.count('offset'), undefined)
  assert.throws(() => values.exclusive('base', 'keep-nvram'), /options --base and --keep-nvram are mutually exclusive/)
})

test('the default URI names the state folder, and survives odd characters', () => {
  assert.equal(defaultUri({ VIRSTREAM_DEFAULT_URI: 'test:///default' }), 'test:///default')
  assert.equal(defaultUri({ XDG_STATE_HOME: '/a/b' }), 'qemu:///embed?root=/a/b/virstream')
  const uri = new URL(defaultUri({ XDG_STATE_HOME: '/with space & more?' }))
  assert.equal(uri.searchParams.get('root'), '/with space & more?/virstream')
  assert.match(defaultUri({ XDG_STATE_HOME: '' }), /\.local\/state\/virstream$/)
})
