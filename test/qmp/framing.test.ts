import assert from 'node:assert/strict'
import { test } from 'node:test'
import { formatCommand, QmpSplitter } from '../../src/qmp/framing.js'

const WIRE = [
  '{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}, "capabilities": []}}\r\n',
  '{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"}\r\n',
  '{"return": {"name": "h\u00f6her"}, "id": "vs-1"}\r\n',
  '{"id": "vs-2", "error": {"class": "GenericError", "desc": "no"}}\r\n',
].join('')

test('messages come out the same however the bytes arrive', () => {
  const bytes = Buffer.from(WIRE)
  const whole = new QmpSplitter().push(bytes)
  assert.deepEqual(
    whole.map((message) => message.kind),
    ['greeting', 'event', 'reply', 'reply'],
  )
  for (const size of [1, 2, 3, 7, 64]) {
    const splitter = new QmpSplitter()
    const messages = []
    for (let at = 0; at < bytes.length; at += size) messages.push(...splitter.push(bytes.subarray(at, at + size)))
    assert.deepEqual(messages, whole, `in pieces of ${size}`)
  }
})

test('an event without data has empty data', () => {
  const [message] = new QmpSplitter().push(
    Buffer.from('{"event": "RESUME", "timestamp": {"seconds": 0, "microseconds": 0}}\n'),
  )
  assert.ok(message?.kind === 'event')
  assert.deepEqual(message.event.data, {})
})

test('a line without end is refused instead of filling the memory', () => {
  const splitter = new QmpSplitter()
  const chunk = Buffer.alloc(16 * 1024 * 1024, 'x')
  assert.throws(() => {
    for (let i = 0; i < 5; i++) splitter.push(chunk)
  }, RangeError)
})

test('a command is one line', () => {
  const line = formatCommand('blockdev-add', { driver: 'file', filename: 'a\nb' }, 'vs-9').toString()
  assert.equal(line, '{"execute":"blockdev-add","arguments":{"driver":"file","filename":"a\\nb"},"id":"vs-9"}\r\n')
})
