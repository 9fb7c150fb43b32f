/** A sanlock daemon of the test's own, without the host's watchdog: its sockets and leases lie in the test's folder. */
import { closeSync, existsSync, openSync } from 'node:fs'
import { join } from 'node:path'
import { native } from '../../src/native.js'
import { killerOf } from './killer.js'
import { until } from './domain.js'
import { temporaryFolder, type Cleanup } from './images.js'
import { findProgram } from './requires.js'

export interface Sanlock {
  runDir: string
  /** for leases */
  directory: string
  kill: () => Promise<void>
}

export async function startSanlock(t: Cleanup): Promise<Sanlock> {
  const folder = await temporaryFolder(t)
  const runDir = join(folder, 'run')
  const [idle, out] = [openSync('/dev/null', 'r'), openSync(join(folder, 'sanlock.log'), 'a')]
  const options = ['-D', '-w', '0', '-h', '0', '-l', '0', '-U', 'root', '-G', 'root', '-e', 'test']
  const pid = native.spawn({
    file: findProgram('sanlock') ?? '/usr/sbin/sanlock',
    args: ['sanlock', 'daemon', ...options],
    env: { SANLOCK_RUN_DIR: runDir, SANLOCK_PRIVILEGED: '0', PATH: '/usr/sbin:/usr/bin' },
    fds: [
      { source: idle, target: 0 },
      { source: out, target: 1 },
      { source: out, target: 2 },
    ],
  })
  closeSync(idle)
  closeSync(out)
  const kill = killerOf(t, pid)
  await until('sanlock listens', () => existsSync(join(runDir, 'sanlock.sock')))
  return { runDir, directory: join(folder, 'leases'), kill }
}
