/** A slice of the campaign of migrations (see docs/campaigns.md): kills where either side writes down how far it is. */
import { test } from 'node:test'
import { Stack } from '../../scripts/program.js'
import { requires } from '../support/requires.js'
import { type Round, Theatre } from './migrate.js'

const rounds: readonly Omit<Round, 'run'>[] = [
  { life: 'stream', victim: 'source', moment: { record: 2, side: '>' } },
  { life: 'stream', victim: 'destination', moment: { record: 4, side: '<' } },
  // the last of it is here, and it does not run yet
  { life: 'back', victim: 'source', moment: { phase: 'returned', side: '<' } },
  { life: 'back', victim: 'destination', moment: { phase: 'returning', side: '>' } },
  { life: 'mirror', victim: 'source', moment: { record: 2, side: '<' } },
]

test('whoever is killed in a migration, one guest runs in the end, and each of its blocks is right', async (context) => {
  if (!requires(context, 'program:qemu-system-x86_64', 'program:qemu-img', 'program:qemu-storage-daemon')) return
  // newest first: what runs, then its folder
  const t = new Stack()
  context.after(() => t.undo((text) => context.diagnostic(text)))
  const theatre = await Theatre.open(t, process.geteuid?.() === 0)
  for (const [run, round] of rounds.entries()) {
    const { words } = await theatre.play({ run, ...round })
    context.diagnostic(`${round.life}, ${round.victim}: ${words}`)
  }
})
