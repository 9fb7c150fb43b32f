/** AppArmor's language: what a QEMU may do, as text. */
import type { DomainDef } from '../conf/domain-def.js'
import type { LabelTarget } from './security-driver.js'

/** A path in quotes, where only the marks of patterns mean something. */
function quoted(path: string): string {
  const octal = (char: string): string => `\\${char.charCodeAt(0).toString(8).padStart(3, '0')}`
  return `"${path.replace(/[\\"*?[\]{}^,@]/g, '\\$&').replace(/[\x00-\x1f\x7f]/g, octal)}"`
}

/** One rule for each thing that a QEMU gets; several lines for a folder. QEMU locks images, hence k. */
export function fileRule(target: Pick<LabelTarget, 'path' | 'kind' | 'readonly'>, isDirectory: boolean): string {
  const { path, kind, readonly } = target
  if (isDirectory) return `  ${quoted(`${path}/`)} rw, ${quoted(path).slice(0, -1)}/**" rwk,`
  if (kind === 'log') return `  ${quoted(path)} w,`
  return `  ${quoted(path)} ${readonly ? 'rk' : 'rwk'},`
}

export interface ProfileHost {
  /** absolute path of what runs in the profile */
  binary: string
  /** does the host have libvirt's own abstraction for QEMU? */
  hasAbstraction: boolean
}

/** A profile of its own for one domain; what it may open stands in a file beside it, which changes while it runs. */
export function profileText(def: DomainDef, name: string, files: string, host: ProfileHost): string {
  const general = host.hasAbstraction ? ['#include <abstractions/libvirt-qemu>'] : WITHOUT_LIBVIRT
  const lines = [
    '#include <abstractions/base>',
    ...general,
    `${quoted(host.binary)} mr,`,
    'signal (receive) peer=unconfined,',
    'ptrace (read) peer=unconfined,',
    `#include ${quoted(files)}`,
  ]
  const about = `# domain '${def.name.replaceAll(/[^ -~]/g, '?')}'`
  return [about, '#include <tunables/global>', `profile ${quoted(name)} flags=(attach_disconnected) {`]
    .concat(
      lines.map((line) => `  ${line}`),
      '}',
      '',
    )
    .join('\n')
}

/** What any QEMU needs: its libraries and firmware, the network, devices that are for everyone. */
const WITHOUT_LIBVIRT = [
  'network inet stream,',
  'network inet6 stream,',
  'network inet dgram,',
  'network inet6 dgram,',
  'network unix stream,',
  '/dev/kvm rw,',
  '/dev/net/tun rw,',
  '/dev/vhost-net rw,',
  '/dev/ptmx rw,',
  '/dev/pts/* rw,',
  '/dev/hugepages/** rwk,',
  '/usr/share/{qemu,seabios,vgabios,ovmf,OVMF,AAVMF,edk2,ipxe,qemu-efi-aarch64}/** r,',
  '/usr/lib{,64}/qemu/** mr,',
  '/usr/lib/@{multiarch}/qemu/** mr,',
  'owner @{PROC}/@{pid}/{status,task/,task/**} r,',
  '@{PROC}/sys/vm/overcommit_memory r,',
  '/sys/devices/system/{cpu,node}/** r,',
]
