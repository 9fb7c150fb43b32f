/**
 * A transport of one's own: a domain goes from one root of this process to another, its memory by gzip.
 * usage: node dist/examples/transport.js URI DOMAIN DESTINATION-URI
 */
import { constants, createGunzip, createGzip } from 'node:zlib'
import { Connect, VIR_DOMAIN_JOB_STATS_COMPLETED, VIR_MIGRATE_LIVE, type MigrationTransport } from 'virstream'

const [uri, name, destination] = process.argv.slice(2)
if (uri === undefined || name === undefined || destination === undefined) {
  console.error('usage: transport URI DOMAIN DESTINATION-URI')
  process.exit(2)
}

const gzip: MigrationTransport = {
  name: 'gzip',
  encode: () => createGzip({ level: 1, flush: constants.Z_SYNC_FLUSH }), // nothing is held back
  decode: () => createGunzip(),
}

await using here = await Connect.open(uri, { transports: [gzip] })
await using there = await Connect.open(destination, { transports: [gzip] })
const domain = await here.domainLookupByName(name)
const began = performance.now()
const moved = await domain.migrate(there, { transport: 'gzip' }, VIR_MIGRATE_LIVE)
const { memProcessed, transportBytes = 0 } = await domain.getJobStats(VIR_DOMAIN_JOB_STATS_COMPLETED)
console.log(`${moved.name} runs at ${await there.getURI()} after ${Math.round(performance.now() - began)} ms`)
console.log(`${memProcessed} bytes of memory were ${transportBytes} on the link`)
