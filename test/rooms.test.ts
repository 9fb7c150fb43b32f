/** The shape of the sources: which room may import which, no cycles, one importer of the addon, no file too long. */
import assert from 'node:assert/strict'
import { readdirSync, readFileSync } from 'node:fs'
import { dirname, join, relative, resolve } from 'node:path'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'

/** What the rooms of the QEMU driver share that know of running domains. */
const upToCore = ['qemu/core', 'qemu/access', 'qemu/blocks', 'qemu/monitor']

/**
 * What a room may import, besides itself, the packages and what is open to all. A room is one folder: those inside it are
 * rooms of their own.
 */
const imports: Readonly<Record<string, readonly string[]>> = {
  util: [],
  qmp: ['util'],
  nbd: ['util'],
  tunnel: ['util'],
  conf: ['util'],
  storage: ['conf', 'util'],
  security: ['conf', 'util'],
  locking: ['conf', 'util'],
  api: ['conf', 'util'],
  machine: ['conf', 'qmp', 'util'],
  migration: ['locking', 'tunnel', 'util'],
  'qemu/monitor': ['machine', 'qmp', 'security'],
  'qemu/blocks': ['qemu/monitor', 'conf', 'machine', 'nbd', 'qmp'],
  'qemu/access': ['qemu/blocks', 'qemu/monitor', 'conf', 'locking', 'machine', 'security', 'util'],
  'qemu/core': ['qemu/access', 'qemu/blocks', 'qemu/monitor', 'conf', 'locking', 'machine', 'migration', 'util'],
  'qemu/streams': [...upToCore, 'conf', 'machine', 'nbd', 'qmp', 'storage', 'util'],
  'qemu/disks': ['qemu/streams', ...upToCore, 'conf', 'machine', 'storage', 'util'],
  'qemu/domain': ['qemu/disks', 'qemu/streams', ...upToCore, 'conf', 'machine', 'qmp', 'storage', 'util'],
  'qemu/migration': [
    ...['qemu/domain', 'qemu/streams', ...upToCore],
    ...['conf', 'locking', 'machine', 'migration', 'nbd', 'qmp', 'storage', 'tunnel', 'util'],
  ],
  qemu: [
    ...['qemu/migration', 'qemu/domain', 'qemu/disks', 'qemu/streams', ...upToCore],
    ...['locking', 'machine', 'migration', 'security'],
  ],
  ffi: ['conf', 'migration', 'nbd', 'tunnel', 'util'],
  'test-driver': ['conf', 'util'],
  remote: ['api', 'conf', 'tunnel', 'util'],
  cli: ['api', 'conf', 'qemu', 'qemu/monitor', 'remote', 'util'],
  bin: ['cli'],
}

/** Files of src itself that every room may import. */
const openToAll = [
  'driver',
  'block-types',
  'domain-events',
  'migrate-params',
  'error',
  'native',
  'stream-flags',
  'constants.gen',
  'error-codes.gen',
]

/** Imports at run time (`import()`) that go up on purpose: what is loaded only when it is used. */
const lazyUpwards: Readonly<Record<string, readonly string[]>> = { api: ['drivers'] }

/** Types that a room knows of one above it: who is handed in from there. */
const typesUpwards: Readonly<Record<string, readonly string[]>> = {
  'qemu/core': ['qemu/migration/incoming', 'qemu/migration/outgoing'],
  'qemu/streams': ['qemu/migration/incoming'],
}

const MOST_LINES = 300

/** Files that may be longer, with the reason. */
const longFiles: Readonly<Record<string, string>> = {
  'conf/domain-def.ts': 'the data model of domain XML, types only',
  'nbd/client.ts': 'one connection: its negotiation and its transmission share all of their state',
  'api/domain.ts': "one method for each of libvirt's functions, most of it documentation",
}

const source = fileURLToPath(new URL('../../src', import.meta.url))

interface Import {
  path: string
  /** by `import()` */
  lazy: boolean
  /** gone when the program runs */
  typeOnly: boolean
}

interface SourceFile {
  /** below src: 'qemu/streams/stream.ts' */
  path: string
  text: string
  /** '' for files of src itself */
  room: string
  imports: Import[]
}

function readSources(): SourceFile[] {
  const paths = readdirSync(source, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && entry.name.endsWith('.ts'))
    .map((entry) => relative(source, join(entry.parentPath, entry.name)))
  return paths.map((path) => {
    const text = readFileSync(join(source, path), 'utf8')
    return { path, text, room: roomOf(path), imports: [...importsOf(path, text)] }
  })
}

function* importsOf(path: string, text: string): Generator<Import> {
  const target = (specifier: string): string =>
    relative(source, resolve(source, dirname(path), specifier)).replace(/\.js$/, '.ts')
  for (const [statement, specifier = ''] of text.matchAll(/^(?:import|export)\b(?:[^'"]*?\bfrom)?\s+'(\.[^']+)'/gm))
    yield { path: target(specifier), lazy: false, typeOnly: /^\w+ type\b/.test(statement) }
  for (const [, specifier = ''] of text.matchAll(/\bimport\(\s*'(\.[^']+)'\s*\)/g))
    yield { path: target(specifier), lazy: true, typeOnly: false }
}

const roomOf = (path: string): string => (path.includes('/') ? dirname(path) : '')

const files = readSources()

test('every room is in the table, and every room of the table is there', () => {
  const rooms = new Set(files.map(({ room }) => room).filter((room) => room !== ''))
  assert.deepEqual([...rooms].toSorted(), Object.keys(imports).toSorted())
})

test('every import of a room goes to a room that it may import', () => {
  const wrong = files.flatMap(({ path, room, imports: all }) =>
    all
      .filter(() => room !== '')
      .filter((imported) => {
        const to = roomOf(imported.path)
        const name = imported.path.replace(/\.ts$/, '')
        if (to === '')
          return !openToAll.includes(name) && !(imported.lazy && lazyUpwards[room]?.includes(name) === true)
        if (imported.typeOnly && typesUpwards[room]?.includes(name) === true) return false
        return to !== room && !(imports[room] ?? []).includes(to)
      })
      .map((imported) => `${path} imports ${imported.path}`),
  )
  assert.deepEqual(wrong, [])
})

test('what is open to all imports nothing of a room but types', () => {
  const wrong = files
    .filter(({ path }) => openToAll.includes(path.replace(/\.ts$/, '')))
    .flatMap(({ path, imports: all }) =>
      all
        .filter(({ path: to, typeOnly }) => roomOf(to) !== '' && !typeOnly)
        .map((imported) => `${path} imports ${imported.path}`),
    )
  assert.deepEqual(wrong, [])
})

test('the table itself has no cycle', () => {
  const visit = (room: string, above: readonly string[]): void => {
    assert.ok(!above.includes(room), [...above, room].join(' → '))
    for (const next of imports[room] ?? []) visit(next, [...above, room])
  }
  for (const room of Object.keys(imports)) visit(room, [])
})

test('no file imports, by way of others, itself', () => {
  const next = new Map(
    files.map(({ path, imports: all }) => [
      path,
      all.filter(({ lazy, typeOnly }) => !lazy && !typeOnly).map((imported) => imported.path),
    ]),
  )
  const cycles: string[] = []
  const done = new Set<string>()
  const visit = (path: string, above: readonly string[]): void => {
    const from = above.indexOf(path)
    if (from >= 0) cycles.push([...above.slice(from), path].join(' → '))
    if (from >= 0 || done.has(path)) return
    for (const each of next.get(path) ?? []) visit(each, [...above, path])
    done.add(path)
  }
  for (const path of next.keys()) visit(path, [])
  assert.deepEqual(cycles, [])
})

test('every relative import leads to a source that is there', () => {
  const known = new Set(files.map(({ path }) => path))
  const missing = files.flatMap(({ path, imports: all }) =>
    all.filter((imported) => !known.has(imported.path)).map((imported) => `${path} imports ${imported.path}`),
  )
  assert.deepEqual(missing, [])
})

test('only src/native.ts loads the native addon', () => {
  const loaders = files.filter(({ text }) => /virstream\.node|createRequire|process\.dlopen/.test(text))
  assert.deepEqual(
    loaders.map(({ path }) => path),
    ['native.ts'],
  )
})

test(`no source is longer than ${MOST_LINES} lines, but those of which it is known why`, () => {
  const generated = /\.gen\.ts$/
  const long = files
    .filter(({ path }) => !generated.test(path))
    .map(({ path, text }) => ({ path, lines: text.trimEnd().split('\n').length }))
    .filter(({ lines }) => lines > MOST_LINES)
  const unknown = long.filter(({ path }) => longFiles[path] === undefined)
  assert.deepEqual(unknown, [])
  const gone = Object.keys(longFiles).filter((path) => !files.some((file) => file.path === path))
  assert.deepEqual(gone, [], 'these are no longer there: take them from the list')
})

test('the only file that re-exports is src/index.ts', () => {
  const barrels = files.filter(({ path, text }) => path !== 'index.ts' && /^export (\*|\{[^}]*\}) from/m.test(text))
  assert.deepEqual(
    barrels.map(({ path }) => path),
    [],
  )
})
