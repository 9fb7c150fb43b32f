/**
 * Streams a disk of a running domain and shows how far it is.
 * usage: node dist/examples/stream-a-disk.js URI DOMAIN DISK [MIB_PER_SECOND]
 */
import { Connect, VirError } from 'virstream'

const [uri, name, disk, limit] = process.argv.slice(2)
if (uri === undefined || name === undefined || disk === undefined) {
  console.error('usage: stream-a-disk URI DOMAIN DISK [MIB_PER_SECOND]')
  process.exit(2)
}

const interrupt = new AbortController()
process.once('SIGINT', () => interrupt.abort())

await using conn = await Connect.open(uri)
const domain = await conn.domainLookupByName(name)
try {
  const stream = await domain.stream(disk, {
    bandwidth: Number(limit ?? 0) * 1024 * 1024,
    signal: interrupt.signal,
  })
  for await (const { offset, size } of stream) {
    console.log(`${disk}: ${((offset / size) * 100).toFixed(1)} %`)
  }
  console.log(`${disk} needs no backing image any more`)
} catch (error) {
  if (!(error instanceof VirError)) throw error
  console.error(`${error.code}: ${error.message}`)
  process.exitCode = 1
}
