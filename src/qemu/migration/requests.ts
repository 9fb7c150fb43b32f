/** What the source of a migration to here opens and asks. */
import { failFrom } from '../../error.js'
import { Messages } from '../../tunnel/messages.js'
import type { ChannelRequest } from '../../tunnel/requests.js'
import type { Tunnel } from '../../tunnel/tunnel.js'
import type { LockCookie } from '../../locking/lock-driver.js'
import { MigrationCommands } from '../monitor/migration-commands.js'
import { SERVICE } from '../../migration/link.js'
import { attachDisks, openDisks, serveMirror } from './target-disks.js'
import type { Qemu } from '../core/qemu.js'
import type { Incoming } from './incoming.js'
import { beAbandoned } from './abandoned.js'
import { cancel, finish, letGoOf } from './arrive.js'
import { prepareRecovery, takeChannel } from './postcopy-target.js'
import { giveUp, keepAfterAll, mirrorBack, prepareReturn, sendBack } from './give-back.js'

const fail = failFrom('VIR_FROM_QEMU')

/** A channel that a source opens. */
export async function routeIncoming(qemu: Qemu, request: ChannelRequest, tunnel: Tunnel): Promise<void> {
  const { id, key } = request.params
  const incoming = typeof id === 'string' ? qemu.incoming.get(id) : undefined
  if (incoming === undefined || incoming.record.key !== key || incoming.cancelling !== undefined)
    request.refuse('there is no such migration here')
  else if (request.service === SERVICE.messages) attach(qemu, incoming, request, tunnel)
  else if (request.service === SERVICE.memory) await takeChannel(qemu, incoming, request)
  else if (request.service === SERVICE.disks) await serveMirror(incoming, request)
  else request.refuse(`a migration has no service '${request.service}'`)
}

/** The source is here (again). */
function attach(qemu: Qemu, incoming: Incoming, request: ChannelRequest, tunnel: Tunnel): void {
  incoming.messages?.close()
  const messages = new Messages(request.accept(), {
    onRequest: (method, params) => answer(qemu, incoming, method, params),
  })
  incoming.messages = messages
  incoming.sourceIsHere()
  incoming.relay?.setTunnel(tunnel)
  void messages.closed.then(() => {
    if (incoming.messages === messages) left(incoming, tunnel)
  })
  incoming.streamEnded()
}

function left(incoming: Incoming, tunnel: Tunnel): void {
  incoming.messages = undefined
  if (incoming.relay?.tunnel === tunnel) incoming.relay.setTunnel(undefined)
  incoming.waitForSource()
}

/** What the source's driver asks or tells. */
async function answer(qemu: Qemu, incoming: Incoming, method: string, params: unknown): Promise<unknown> {
  const { record, vm } = incoming
  switch (method) {
    case 'disks':
      await openDisks(incoming, vm.requireLive())
      return {}
    case 'incoming': {
      const live = vm.requireLive()
      const { capabilities } = params as { capabilities: Record<string, boolean> }
      await attachDisks(qemu, incoming, live)
      await new MigrationCommands(live.monitor).setCapabilities(capabilities)
      return {}
    }
    case 'reason':
      return incoming.reason
    case 'memory-recover':
      return prepareRecovery(incoming)
    case 'phase':
      return { phase: record.phase }
    case 'finish':
      await finish(qemu, incoming, (params as { locks?: LockCookie }).locks)
      return { phase: record.phase }
    case 'cancel':
      if (record.phase === 'streaming') return { phase: record.phase }
      await cancel(qemu, incoming, 'the source called it off')
      return { phase: 'cancelled' }
    case 'return-begin':
      await prepareReturn(qemu, incoming)
      return {}
    case 'return-mirror':
      await mirrorBack(qemu, incoming)
      return {}
    case 'return-memory':
      await sendBack(qemu, incoming)
      return {}
    case 'return-failed':
      await keepAfterAll(qemu, incoming)
      return {}
    case 'return-done':
      await giveUp(qemu, incoming)
      return {}
    case 'let-go':
      await letGoOf(qemu, incoming)
      return {}
    case 'abandoned':
      await beAbandoned(qemu, incoming)
      return {}
    default:
      throw fail('VIR_ERR_NO_SUPPORT', `the destination of a migration knows no '${method}'`)
  }
}
