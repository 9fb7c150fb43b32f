/**
 * A lock manager of one's own, in this process: starts some domains for as long as that takes, but no two on one image.
 * usage: node dist/examples/lock-driver.js URI DOMAIN...
 */
import { Connect, VirError, type Domain, type LockDriver } from 'virstream'

const [uri, ...names] = process.argv.slice(2)
if (uri === undefined || names.length === 0) {
  console.error('usage: lock-driver URI DOMAIN...')
  process.exit(2)
}

const holders = new Map<string, string>()
const lockManager: LockDriver = {
  name: 'memory',
  async acquire(owner, resources) {
    const wanted = resources.filter(({ mode }) => mode !== 'read-only')
    const taken = wanted.map(({ path }) => path).find((path) => holders.has(path)) ?? ''
    const holder = holders.get(taken)
    if (holder) throw new VirError('VIR_ERR_RESOURCE_BUSY', 'VIR_FROM_LOCKING', `'${holder}' has ${taken}`)
    for (const { path } of wanted) holders.set(path, owner.name)
    return Promise.resolve({ owner, resources })
  },
  release({ owner, resources }) {
    const mine = resources.filter(({ path }) => holders.get(path) === owner.name && holders.delete(path))
    for (const { path } of mine) console.log(`${path} is free`)
    return Promise.resolve(undefined)
  },
  inquire: () => Promise.resolve(true), // it is kept here, so it cannot get lost
}

await using conn = await Connect.open(uri, { lockManager })
const started: Domain[] = []
for (const domain of await Promise.all(names.map((name) => conn.domainLookupByName(name)))) {
  const error = await domain.create().catch((thrown: unknown) => thrown)
  if (!(error instanceof Error)) started.push(domain)
  console.log(error instanceof Error ? `${domain.name} does not: ${error.message}` : `${domain.name} runs`)
}
for (const domain of started.toReversed()) await domain.destroy()
