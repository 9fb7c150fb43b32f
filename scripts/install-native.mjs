/**
 * Makes the native addon ready: takes the ready-made one of the package where it loads, builds it otherwise.
 * npm runs this at install (`npm install` of version 11 may not: then run it by hand). Does nothing when all is current.
 * `--prebuild` builds and leaves a stripped copy in prebuilds/, for `npm pack`.
 */
import { spawnSync } from 'node:child_process'
import { copyFileSync, existsSync, mkdirSync, readdirSync, readFileSync, statSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = resolve(dirname(fileURLToPath(import.meta.url)), '..')
const require = createRequire(import.meta.url)
const built = join(root, 'build/Release/virstream.node')
const prebuilt = join(root, `prebuilds/linux-${process.arch}/virstream.node`)

function say(line) {
  console.log(`virstream: ${line}`)
}

function fail(lines) {
  for (const line of lines) console.error(`virstream: ${line}`)
  process.exit(1)
}

function newestSource() {
  const sources = readdirSync(join(root, 'native')).map((name) => join(root, 'native', name))
  return Math.max(...[...sources, join(root, 'binding.gyp')].map((path) => statSync(path).mtimeMs))
}

function loads(path) {
  // in a process of its own: an addon for another C library may do worse than throw
  return spawnSync(process.execPath, ['-e', 'require(process.argv[1])', path], { stdio: 'ignore' }).status === 0
}

/** Whether the addon at `path` loads here and is not older than the sources. */
function isCurrent(path) {
  return existsSync(path) && statSync(path).mtimeMs >= newestSource() && loads(path)
}

function hasProgram(name) {
  return spawnSync('sh', ['-c', `command -v ${name}`], { stdio: 'ignore' }).status === 0
}

/** The headers that came with this node, when they are of its version: nothing has to be downloaded then. */
function nodeDirectory() {
  const prefix = resolve(dirname(process.execPath), '..')
  const header = join(prefix, 'include/node/node_version.h')
  if (!existsSync(header)) return undefined
  const major = /#define NODE_MAJOR_VERSION (\d+)/.exec(readFileSync(header, 'utf8'))?.[1]
  return major === process.versions.node.split('.')[0] ? prefix : undefined
}

function nodeGyp() {
  try {
    return require.resolve('node-gyp/bin/node-gyp.js')
  } catch {
    return fail(['node-gyp is missing: run "npm install" first'])
  }
}

function build() {
  const missing = [process.env.CXX ?? 'g++', 'make', 'python3'].filter((name) => !hasProgram(name))
  if (missing.length > 0) {
    fail([
      `no ready-made native addon for linux-${process.arch} fits, and ${missing.join(', ')} to build one is missing`,
      'on Debian and Ubuntu: sudo apt-get install build-essential python3, then: node scripts/install-native.mjs',
    ])
  }
  const args = [nodeGyp(), 'rebuild', '--loglevel=error']
  const headers = nodeDirectory()
  if (headers !== undefined && process.env.npm_config_nodedir === undefined) args.push(`--nodedir=${headers}`)
  const run = spawnSync(process.execPath, args, { cwd: root, encoding: 'utf8' })
  if (run.status !== 0 || !loads(built)) {
    process.stderr.write(`${run.stdout}${run.stderr}`)
    fail(['building the native addon failed; what the compiler said is above'])
  }
  say('built the native addon')
}

function prebuild() {
  if (!isCurrent(built)) build()
  mkdirSync(dirname(prebuilt), { recursive: true })
  copyFileSync(built, prebuilt)
  if (hasProgram('strip')) spawnSync('strip', ['--strip-unneeded', prebuilt], { stdio: 'inherit' })
  if (!loads(prebuilt)) fail([`${prebuilt} does not load`])
  say(`${prebuilt.slice(root.length + 1)} is ready`)
}

if (process.argv.includes('--prebuild')) prebuild()
else if (!isCurrent(built) && !isCurrent(prebuilt)) build()
