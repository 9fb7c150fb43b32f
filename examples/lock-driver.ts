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
    for (const { path } of wanted) {
      const holder = holders.get(path)
      if (holder) throw new VirError('VIR_ERR_RESOURCE_BUSY', 'VIR_FROM_LOCKING', `'${holder}' has ${path}`)
    }
    for (const { path } of wanted) holders.set(path, owner.name)
    return Promise.resolve({ owner, resources })
  },
  async release({ owner, resources }) {
    for (const { path } of resources)
      if (holders.get(path) === owner.name && holders.delete(path)) console.log(`${path} is free`)
    return Promise.resolve(undefined)
  },
  inquire: () => Promise.resolve(true), // it is kept here, so it cannot get lost
}

await using conn = await Connect.open(uri, { lockManager })
const started: Domain[] = []
for (const name of names) {
  const domain = await conn.domainLookupByName(name)
  const error = await domain.create().catch((thrown: unknown) => thrown)
  if (!(error instanceof Error)) started.push(domain)
  console.log(error instanceof Error ? `${name} does not: ${error.message}` : `${name} runs`)
}
for (const domain of started.toReversed()) await domain.destroy()
