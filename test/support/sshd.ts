/** An sshd of the test's own, on a port of the loopback, with keys of its own: nothing of the host's is read or changed. */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { spawn } from 'node:child_process'
import { join } from 'node:path'
import { run } from '../../src/util/run.js'
import { until } from './domain.js'
import type { Cleanup } from './images.js'
import { freePort } from './ports.js'

export interface Sshd {
  port: number
  /** file of the key that it lets in */
  key: string
  /** a program that is ssh, and knows this host only */
  ssh: string
}

export async function newKey(path: string): Promise<string> {
  await run('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', path])
  return path
}

/** What ssh is to use in the place of what the user has: hosts that are known. */
export function sshWith(folder: string, name: string, hosts: string): string {
  const [known, path] = [join(folder, `${name}.hosts`), join(folder, name)]
  writeFileSync(known, hosts)
  const options = `-F none -o UserKnownHostsFile=${known} -o GlobalKnownHostsFile=none -o BatchMode=yes`
  writeFileSync(path, `#!/bin/sh\nexec ssh ${options} "$@"\n`, { mode: 0o755 })
  return path
}

export async function startSshd(t: Cleanup, folder: string): Promise<Sshd> {
  mkdirSync(folder, { recursive: true })
  const [port, key, hostKey] = [
    await freePort(),
    await newKey(join(folder, 'user')),
    await newKey(join(folder, 'host')),
  ]
  const config = join(folder, 'sshd_config')
  const lines = [
    ...[`Port ${port}`, 'ListenAddress 127.0.0.1', `HostKey ${hostKey}`, `AuthorizedKeysFile ${key}.pub`],
    ...['PidFile none', 'StrictModes no', 'UsePAM no', 'PasswordAuthentication no', 'PermitRootLogin yes'],
  ]
  writeFileSync(config, `${lines.join('\n')}\n`)
  // it wants a folder in /run, which is made in a namespace of its own
  const script = `mount --make-rprivate /; mount -t tmpfs none /run; mkdir /run/sshd; exec /usr/sbin/sshd -D -e -f ${config}`
  const child = spawn('unshare', ['-m', 'sh', '-ec', script], { stdio: ['ignore', 'ignore', 'pipe'] })
  t.after(() => child.kill('SIGKILL'))
  let said = ''
  child.stderr.on('data', (data: Buffer) => (said += data.toString()))
  await until('sshd listens', () => {
    if (child.exitCode !== null) throw new Error(`sshd ended: ${said}`)
    return said.includes('Server listening')
  })
  const known = `[127.0.0.1]:${port} ${readFileSync(`${hostKey}.pub`, 'utf8')}`
  return { port, key, ssh: sshWith(folder, 'ssh', known) }
}
