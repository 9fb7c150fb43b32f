/** What the QEMUs and storage daemons of a root that come and go mean to the migrations that it has. */
import { forgetAbandoned } from './abandoned.js'
import { goOnWithout } from './guestless.js'
import { serveAgainLater } from './serve.js'
import { leaveWriteBack, untilAllMoved } from './write-back.js'
import type { MigrationHooks, Qemu } from '../core/qemu.js'

export function migrationHooks(qemu: Qemu): MigrationHooks {
  return {
    beforeStart: (vm) => leaveWriteBack(qemu, vm),
    diskPulled: (vm, target, isAborted) => untilAllMoved(qemu, vm, target, isAborted),
    guestEnded(vm) {
      goOnWithout(qemu, vm)
      for (const incoming of qemu.incomingsOf(vm))
        if (incoming.record.phase === 'abandoned') forgetAbandoned(qemu, incoming)
      for (const outgoing of qemu.outgoing.values()) if (outgoing.vm === vm) serveAgainLater(qemu, outgoing)
    },
    daemonDied: (vm) => goOnWithout(qemu, vm, true),
  }
}
