/**
 * Prints what happens to the domains of a connection.
 * usage: node dist/examples/watch-events.js URI [SECONDS]
 */
import { setTimeout as delay } from 'node:timers/promises'
import { Connect } from 'virstream'

const [uri, seconds] = process.argv.slice(2)
if (uri === undefined) {
  console.error('usage: watch-events URI [SECONDS]')
  process.exit(2)
}

await using conn = await Connect.open(uri)

// one way: a listener for each kind
conn.on('block-job', ({ domain, disk, status, error }) => {
  console.log(`${domain.name}: job of ${disk} ended with status ${status}${error === undefined ? '' : `: ${error}`}`)
})

// the other way: a loop over all of them; it is live from here on, and told when it is too slow
const events = conn.domainEvents()
const closing = delay(Number(seconds ?? 60) * 1000).then(() => conn.close())
for (const domain of await conn.listAllDomains()) console.log(`watching ${domain.name}`)
for await (const event of events) {
  if (event.kind === 'lifecycle') console.log(`${event.domain.name}: event ${event.event}, detail ${event.detail}`)
  else if (event.kind === 'stream-progress') console.log(`${event.domain.name}: ${event.disk} at ${event.offset}`)
  else if (event.kind === 'overflow') console.log(`${event.dropped} events were dropped`)
}
await closing
