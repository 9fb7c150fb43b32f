/** A libvirtd of the test's own, in mount namespaces of its own: nothing that it writes is the host's. Needs root. */
import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { native } from '../../src/native.js'
import { run } from '../../src/util/run.js'
import { until } from './domain.js'
import type { Cleanup } from './images.js'

export interface Libvirtd {
  /** its /run/libvirt, as seen from outside */
  runDir: string
  /** of its QEMU driver */
  uri: string
  /** ends it at once, or sends another signal */
  kill: (signal?: number) => void
  /** runs virsh against it and answers what that says */
  virsh: (...args: string[]) => Promise<string>
}

function tlsConf({ port, pki }: { port: number; pki: string }): string {
  const files = `ca_file = "${pki}/cacert.pem"\ncert_file = "${pki}/servercert.pem"\nkey_file = "${pki}/serverkey.pem"\n`
  return `listen_tls = 1\nlisten_addr = "127.0.0.1"\ntls_port = "${port}"\n${files}`
}

/** The end of what it wrote there. */
const said = (path: string): string => (existsSync(path) ? readFileSync(path, 'utf8').slice(-2_000) : '')

/** Root of a container may not be able to. */
export function mayUnshare(): Promise<boolean> {
  return run('unshare', ['-m', 'mount', '--make-rprivate', '/']).then(
    () => true,
    () => false,
  )
}

/** Mount namespace of a process; undefined when there is no such process. */
function namespaceOf(pid: number): string | undefined {
  try {
    return readlinkSync(`/proc/${pid}/ns/mnt`)
  } catch {
    return undefined
  }
}

/** Ends every process of a mount namespace that is not ours: QEMUs go on when their libvirtd has ended. */
function endAllOf(namespace: string): void {
  if (namespace === namespaceOf(process.pid)) return
  for (const name of readdirSync('/proc')) {
    const pid = Number(name)
    if (Number.isInteger(pid) && namespaceOf(pid) === namespace) process.kill(pid, 'SIGKILL')
  }
}

/**
 * `folder` is its own; `qemuConf` comes first in its qemu.conf, where the first word counts. What it runs is
 * ended with the test. `tls`: it listens there as well, with the certificates of a folder.
 */
export async function startLibvirtd(
  t: Cleanup,
  folder: string,
  qemuConf: string,
  tls?: { port: number; pki: string },
): Promise<Libvirtd> {
  const [etc, runDir, log] = [join(folder, 'etc'), join(folder, 'run'), join(folder, 'libvirtd.log')]
  for (const dir of [etc, runDir]) mkdirSync(dir, { recursive: true })
  const plain = 'user = "root"\ngroup = "root"\nsecurity_driver = "none"\ncgroup_controllers = []\nnamespaces = []\n'
  const files = 'stdio_handler = "file"\ndynamic_ownership = 0\nremember_owner = 0\n'
  writeFileSync(join(etc, 'qemu.conf'), `${qemuConf}${plain}${files}`)
  const conf = `auth_unix_rw = "none"\nlog_level = 3\nlog_outputs = "1:file:${log}"\n`
  writeFileSync(join(etc, 'libvirtd.conf'), tls === undefined ? conf : `${conf}${tlsConf(tls)}`)
  // it wants the user of the package libvirt-daemon-system, although it does not use it
  const passwd = `${readFileSync('/etc/passwd', 'utf8')}libvirt-qemu:x:64055:64055::/nonexistent:/usr/sbin/nologin\n`
  writeFileSync(join(folder, 'passwd'), passwd)
  writeFileSync(join(folder, 'group'), `${readFileSync('/etc/group', 'utf8')}libvirt-qemu:x:64055:\nkvm:x:64056:\n`)
  const script = `mount --make-rprivate /
    for dir in /var/lib /var/cache /var/log /run; do mount -t tmpfs none $dir; done
    mkdir /run/libvirt /run/lock
    mount --bind ${runDir} /run/libvirt
    mount --bind ${etc} /etc/libvirt
    for file in passwd group; do mount --bind ${folder}/$file /etc/$file; done
    exec libvirtd ${tls === undefined ? '' : '--listen'} -f ${etc}/libvirtd.conf -p ${folder}/libvirtd.pid`
  const [idle, out] = [openSync('/dev/null', 'r'), openSync(join(folder, 'out'), 'a')]
  const pid = native.spawn({
    file: '/usr/bin/unshare',
    args: ['unshare', '-m', 'sh', '-ec', script],
    env: { PATH: '/usr/sbin:/usr/bin:/sbin:/bin', LC_ALL: 'C' },
    fds: [
      { source: idle, target: 0 },
      { source: out, target: 1 },
      { source: out, target: 2 },
    ],
  })
  closeSync(idle)
  closeSync(out)
  const watch = native.watchProcess(pid, () => undefined)
  watch.unref()
  t.after(() => watch.kill(9))
  const uri = `qemu+unix:///system?socket=${join(runDir, 'libvirt-sock')}`
  const virsh = async (...args: string[]): Promise<string> =>
    (await run('virsh', ['-c', uri, ...args], { timeout: 30_000 })).stdout
  await until('libvirtd answers', async () => {
    if (!existsSync(`/proc/${pid}`)) throw new Error(`libvirtd ended: ${said(join(folder, 'out'))}${said(log)}`)
    return virsh('list').then(
      () => true,
      () => false,
    )
  })
  const namespace = namespaceOf(pid)
  if (namespace !== undefined) t.after(() => endAllOf(namespace))
  return { runDir, uri, virsh, kill: (signal = 9) => watch.kill(signal) }
}
