/** A virtlockd of the test's own: it gets its socket as systemd would hand it over, and touches nothing of the host's. */
import { closeSync, openSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { native } from '../../src/native.js'
import { killerOf } from './killer.js'
import { temporaryFolder, type Cleanup } from './images.js'
import { findProgram } from './requires.js'

export interface Virtlockd {
  socket: string
  log: string
  pid: number
  /** kills it, and waits until it is gone */
  kill: () => Promise<void>
}

export async function startVirtlockd(t: Cleanup, socketPath?: string): Promise<Virtlockd> {
  const folder = await temporaryFolder(t)
  const socket = socketPath ?? join(folder, 'virtlockd-sock')
  const [config, log] = [join(folder, 'virtlockd.conf'), join(folder, 'virtlockd.log')]
  writeFileSync(config, `log_level = 1\nlog_filters = "1:locking 1:rpc 3:object"\nlog_outputs = "1:file:${log}"\n`)
  const listener = native.listenUnix(socket, 0o600, 16)
  const [idle, out] = [openSync('/dev/null', 'r'), openSync(join(folder, 'out'), 'a')]
  const program = findProgram('virtlockd') ?? 'virtlockd'
  // who is activated wants to find its own pid in the environment
  const command = `LISTEN_PID=$$ exec ${program} -f ${config} -p ${join(folder, 'pid')}`
  const pid = native.spawn({
    file: '/bin/sh',
    args: ['sh', '-c', command],
    env: {
      LISTEN_FDS: '1',
      LISTEN_FDNAMES: 'virtlockd.socket',
      XDG_RUNTIME_DIR: folder,
      HOME: folder,
      PATH: '/usr/bin',
    },
    fds: [
      { source: idle, target: 0 },
      { source: out, target: 1 },
      { source: out, target: 2 },
      { source: listener, target: 3 },
    ],
  })
  closeSync(idle)
  closeSync(out)
  native.close(listener)
  const kill = killerOf(t, pid)
  return { socket, log, pid, kill }
}
