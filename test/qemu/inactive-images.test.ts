import assert from 'node:assert/strict'
import { test } from 'node:test'
import { parseDomainXml } from '../../src/conf/parse.js'
import { type SchemaInfo, SchemaIndex } from '../../src/machine/capabilities-schema.js'
import { QemuCapabilities } from '../../src/machine/capabilities.js'
import { keepImages, serveLeaving, type InactiveCaps } from '../../src/qemu/migration/inactive-images.js'
import { NbdExports } from '../../src/qemu/blocks/nbd-exports.js'
import { agreeable } from '../support/agreeable.js'
import { diskXml, plainXml } from '../support/domain.js'
import { temporaryFolder } from '../support/images.js'
import { findProgram, requires } from '../support/requires.js'

/** What QEMU 10.0 says of the two commands, as far as it matters. */
const TEN: SchemaInfo[] = [
  { 'meta-type': 'command', name: 'block-export-add', 'arg-type': '1', 'ret-type': '0' },
  { 'meta-type': 'object', name: '1', members: [{ name: 'allow-inactive', type: 'bool', default: null }] },
  { 'meta-type': 'command', name: 'blockdev-set-active', 'arg-type': '2', 'ret-type': '0' },
  { 'meta-type': 'object', name: '2', members: [{ name: 'active', type: 'bool' }] },
]

test('QEMU 10 may let go of images that are served, and is told to have them again', async (t) => {
  const commands = await leave(t, new SchemaIndex(TEN))
  assert.deepEqual(
    commands.filter(({ execute }) => !execute.startsWith('q')).map(({ execute, arguments: args }) => [execute, args]),
    [
      [
        'block-export-add',
        {
          ...{ type: 'nbd', id: 'vs-vda', 'node-name': 'node-1-format', name: 'vs-vda' },
          ...{ writable: false, 'allow-inactive': true, 'allocation-depth': true },
        },
      ],
      ['blockdev-set-active', { 'node-name': 'cor-vda', active: true }],
    ],
  )
})

test('an older QEMU is told nothing that it does not know', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64')) return
  const cacheDir = await temporaryFolder(t)
  const capabilities = await QemuCapabilities.load(findProgram('qemu-system-x86_64') ?? '', { cacheDir })
  if (capabilities.version >= 10_000_000) {
    t.skip('this QEMU knows it')
    return
  }
  const commands = await leave(t, capabilities)
  assert.equal(JSON.stringify(commands).includes('active'), false)
  assert.ok(commands.some(({ execute }) => execute === 'block-export-add'))
})

async function leave(
  t: Parameters<typeof agreeable>[0],
  caps: InactiveCaps,
): Promise<Awaited<ReturnType<typeof agreeable>>['commands']> {
  const { monitor, commands } = await agreeable(t)
  const xml = plainXml({ devices: diskXml('vda', '/images/vda.qcow2', { driver: "copy_on_read='on'" }) })
  const { disks } = parseDomainXml(xml)
  for (const { source } of disks) if (source !== undefined) source.index = 1
  const exports = new NbdExports(monitor, '/nowhere', {
    listen: () => -1,
    connect: () => -1,
    threadOf: () => undefined,
  })
  await serveLeaving({ monitor, exports }, disks, caps)
  await keepImages({ monitor, exports }, disks, caps, (text) => assert.fail(text))
  return commands
}
