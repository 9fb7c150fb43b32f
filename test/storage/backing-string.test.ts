import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import type { StorageSource } from '../../src/conf/domain-def.js'
import { VirError } from '../../src/error.js'
import { formatBackingString, parseBackingString } from '../../src/storage/backing-string.js'

const file = (path: string): StorageSource => ({ type: 'file', path })
const nbd = (host: object, name?: string): StorageSource => ({
  type: 'network',
  protocol: 'nbd',
  ...(name !== undefined && { name }),
  hosts: [host],
})
const parent = file('/images/vm/top.qcow2')

const readable: [text: string, source: StorageSource][] = [
  ['/images/base.raw', file('/images/base.raw')],
  ['base.raw', file('/images/vm/base.raw')],
  ['../base.raw', file('/images/vm/../base.raw')],
  ['./a:b', file('/images/vm/./a:b')],
  ['dir/a:b', file('/images/vm/dir/a:b')],
  ['file:/images/base.raw', file('/images/base.raw')],
  ['file:///images/base 1.raw', file('/images/base 1.raw')],
  ['file:base.raw', file('/images/vm/base.raw')],
  ['nbd://host', nbd({ name: 'host' })],
  ['nbd://host/', nbd({ name: 'host' })],
  ['nbd://host:10810/an/export%20name', nbd({ name: 'host', port: 10810 }, 'an/export name')],
  ['nbd+tcp://[::1]:10810/x', nbd({ name: '::1', port: 10810 }, 'x')],
  ['nbd+unix:///?socket=/run/a%20b', nbd({ transport: 'unix', socket: '/run/a b' })],
  ['nbd+unix://?socket=/run/s', nbd({ transport: 'unix', socket: '/run/s' })],
  ['nbd+unix:////x?socket=/run/s', nbd({ transport: 'unix', socket: '/run/s' }, '/x')],
  ['nbd:unix:/run/s', nbd({ transport: 'unix', socket: '/run/s' })],
  ['nbd:unix:/run/s:exportname=a:b', nbd({ transport: 'unix', socket: '/run/s' }, 'a:b')],
  ['nbd:host:10809', nbd({ name: 'host', port: 10809 })],
  ['nbd:[::1]:10809:exportname=:', nbd({ name: '::1', port: 10809 }, ':')],
  [
    'https://host:8443/a%20b/c.qcow2?x=1&y=2',
    {
      type: 'network',
      protocol: 'https',
      name: 'a%20b/c.qcow2',
      query: 'x=1&y=2',
      hosts: [{ name: 'host', port: 8443 }],
    },
  ],
  ['json:{"driver":"file","filename":"base.raw"}', file('/images/vm/base.raw')],
  ['json:{"driver":"raw","file":{"driver":"file","filename":"/b"}}', { ...file('/b'), format: 'raw' }],
  ['json:{"file.driver":"host_device","file.filename":"/dev/x"}', { type: 'block', path: '/dev/x' }],
  [
    'json:{"driver":"qcow2","file":{"driver":"raw","offset":65536,"size":1048576,"file.driver":"file","file.filename":"/b"}}',
    { ...file('/b'), format: 'qcow2', slice: { offset: 65536, size: 1048576 } },
  ],
  [
    'json:{"file":{"driver":"nbd","server":{"type":"inet","host":"host","port":"10809"},"export":"x"}}',
    nbd({ name: 'host', port: 10809 }, 'x'),
  ],
  [
    'json:{"file.driver":"nbd","file.server.type":"unix","file.server.path":"/run/s"}',
    nbd({ transport: 'unix', socket: '/run/s' }),
  ],
  ['json:{"driver":"nbd","host":"host","port":"10809","export":"x"}', nbd({ name: 'host', port: 10809 }, 'x')],
  [
    'json:{"driver":"https","url":"https://host/b","sslverify":false,"timeout":9,"cookie":"a=b; c=d"}',
    {
      ...{ type: 'network', protocol: 'https', name: 'b', hosts: [{ name: 'host' }] },
      ...{ ssl: { verify: 'no' }, timeout: 9 },
      cookies: [
        { name: 'a', value: 'b' },
        { name: 'c', value: 'd' },
      ],
    },
  ],
]

describe('backing strings', () => {
  for (const [text, source] of readable) {
    test(`'${text}' is understood`, () => {
      assert.deepEqual(parseBackingString(text, parent), source)
    })
  }

  test('a path in an image behind HTTP is relative to that image', () => {
    const web = parseBackingString('http://host/images/top.qcow2?token=1')
    const expected = {
      type: 'network',
      protocol: 'http',
      name: 'images/base',
      query: 'token=1',
      hosts: [{ name: 'host' }],
    }
    assert.deepEqual(parseBackingString('base', { ...web, format: 'qcow2', index: 3, backingStore: null }), expected)
  })

  const refused: [text: string, code: string][] = [
    ['', 'VIR_ERR_INTERNAL_ERROR'],
    ['file:', 'VIR_ERR_INTERNAL_ERROR'],
    ['fat:/etc', 'VIR_ERR_CONFIG_UNSUPPORTED'],
    ['rbd:pool/image', 'VIR_ERR_CONFIG_UNSUPPORTED'],
    ['ssh://host/image', 'VIR_ERR_CONFIG_UNSUPPORTED'],
    ['https://user:secret@host/b', 'VIR_ERR_CONFIG_UNSUPPORTED'],
    ['nbd://host:99999/x', 'VIR_ERR_INTERNAL_ERROR'],
    ['nbd://', 'VIR_ERR_INTERNAL_ERROR'],
    ['nbd://host/%zz', 'VIR_ERR_INTERNAL_ERROR'],
    ['nbd+unix:///x', 'VIR_ERR_INTERNAL_ERROR'],
    ['nbd:host', 'VIR_ERR_INTERNAL_ERROR'],
    ['nbd:unix:', 'VIR_ERR_INTERNAL_ERROR'],
    ['json:', 'VIR_ERR_INTERNAL_ERROR'],
    ['json:[]', 'VIR_ERR_INTERNAL_ERROR'],
    ['json:{}', 'VIR_ERR_INTERNAL_ERROR'],
    ['json:null', 'VIR_ERR_INTERNAL_ERROR'],
    ['json:{"file":"some-node"}', 'VIR_ERR_INTERNAL_ERROR'],
    ['json:{"driver":"file"}', 'VIR_ERR_INTERNAL_ERROR'],
    ['json:{"driver":"ssh","host":"h"}', 'VIR_ERR_CONFIG_UNSUPPORTED'],
    ['json:{"driver":"quorum","file":{"driver":"file","filename":"/b"}}', 'VIR_ERR_CONFIG_UNSUPPORTED'],
    ['json:{"driver":"nbd","filename":"/etc/passwd"}', 'VIR_ERR_INTERNAL_ERROR'],
    ['json:{"__proto__.driver":"file","constructor.x":1}', 'VIR_ERR_INTERNAL_ERROR'],
    [`json:${'{"file":'.repeat(100)}1${'}'.repeat(100)}`, 'VIR_ERR_INTERNAL_ERROR'],
    [`json:{"${'file.'.repeat(200)}driver":"file"}`, 'VIR_ERR_INTERNAL_ERROR'],
  ]
  for (const [text, code] of refused) {
    test(`'${text.slice(0, 60)}' is refused`, () => {
      assert.throws(() => parseBackingString(text, parent), { name: 'VirError', code })
    })
  }

  test('a refused address does not show its password', () => {
    assert.throws(
      () => parseBackingString('http://user:secret@host/x'),
      (error) => error instanceof VirError && !error.message.includes('secret'),
    )
  })

  test('a relative path without an image to be relative to is refused', () => {
    assert.throws(() => parseBackingString('base'), { code: 'VIR_ERR_CONFIG_UNSUPPORTED' })
    assert.throws(() => parseBackingString('base', parseBackingString('nbd://host/x')), /'base' of 'nbd:\/\/host\/x'/)
  })
})

test('what is written is read back as the same image', () => {
  const sources: StorageSource[] = [
    file('/images/a b%20:c,d'),
    nbd({ name: 'host' }),
    nbd({ name: '::1', port: 10810 }, 'a/b ?#%'),
    nbd({ transport: 'unix', socket: '/run/a b?&%.sock' }, '/x'),
    { type: 'network', protocol: 'http', name: 'a%20b', query: 'q=1', hosts: [{ name: 'host', port: 8080 }] },
    { ...file('/b'), format: 'raw', slice: { offset: 512, size: 4096 } },
    { ...file('/b'), format: 'qcow2', slice: { offset: 512, size: 4096 } },
    { ...{ type: 'block', path: '/dev/x' }, format: 'raw', slice: { offset: 0, size: 4096 } },
    {
      ...{ type: 'network', protocol: 'https', name: 'b', hosts: [{ name: 'host' }] },
      ...{ format: 'qcow2', ssl: { verify: 'no' } },
    },
    { ...nbd({ name: 'host', port: 10809 }, 'x'), format: 'raw', slice: { offset: 1, size: 2 } },
  ]
  for (const source of sources) assert.deepEqual(parseBackingString(formatBackingString(source)), source)
})

test('a URL says which image is meant, not how QEMU is to treat it', () => {
  const source: StorageSource = {
    ...{ type: 'network', protocol: 'nbd', name: 'x', hosts: [{ name: 'host', port: 10809 }], reconnectDelay: 5 },
    ...{ format: 'qcow2', index: 3, backingStore: null },
  }
  assert.equal(formatBackingString(source), 'nbd://host:10809/x')
  const two: StorageSource = { type: 'network', protocol: 'nbd', hosts: [{ name: 'a' }, { name: 'b' }] }
  assert.throws(() => formatBackingString(two), { code: 'VIR_ERR_CONFIG_UNSUPPORTED' })
})

test('no mangled backing string does more than be refused', () => {
  let x = 20_240_229
  const next = (below: number) => {
    x ^= x << 13
    x ^= x >>> 17
    x ^= x << 5
    return (x >>> 0) % below
  }
  let refused = 0
  for (let i = 0; i < 30_000; i++) {
    const text = readable[next(readable.length)]?.[0] ?? ''
    const at = next(text.length)
    const patch =
      [readable[next(readable.length)]?.[0].slice(next(20)), String.fromCharCode(next(128)), ''][next(3)] ?? ''
    const mangled = text.slice(0, at) + patch + text.slice(at + next(3))
    try {
      const source = parseBackingString(mangled, parent)
      assert.ok(source.type === 'network' || source.path.startsWith('/'), mangled)
    } catch (error) {
      assert.ok(error instanceof VirError, `${mangled}: ${String(error)}`)
      refused++
    }
  }
  assert.ok(refused > 3000 && refused < 27_000, `${refused} refused`)
})
