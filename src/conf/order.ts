/** libvirt's order of child elements, for the elements whose children we sort when kept ones are put back. */
const domain =
  'name uuid genid title description metadata maxMemory memory currentMemory blkiotune memtune memoryBacking vcpu vcpus ' +
  'iothreads iothreadids defaultiothread cputune numatune resource sysinfo bootloader bootloader_args os idmap features ' +
  'cpu clock on_poweroff on_reboot on_crash pm perf devices seclabel keywrap launchSecurity'
const devices =
  'emulator disk controller lease filesystem interface smartcard serial parallel console channel input tpm graphics ' +
  'sound audio video hostdev redirdev redirfilter hub watchdog memballoon rng nvram panic shmem memory iommu vsock crypto'
const disk =
  'driver auth source backingStore backenddomain geometry blockio mirror target iotune readonly shareable transient ' +
  'serial wwn vendor product encryption boot alias acpi address'
const net =
  'mac source local vlan virtualport bandwidth port actual ip route portForward script downscript backenddomain target ' +
  'guest model driver backend filterref tune teaming link mtu coalesce boot alias rom acpi address'
const os = 'type firmware loader nvram kernel initrd cmdline dtb acpi boot bootmenu bios smbios'

export const childOrder: Readonly<Record<string, readonly string[]>> = {
  domain: domain.split(' '),
  devices: devices.split(' '),
  disk: disk.split(' '),
  interface: net.split(' '),
  os: os.split(' '),
}

/** Stable order by a list of names; what is not in the list comes last. */
export function inOrder<T>(items: readonly T[], nameOf: (item: T) => string, order: readonly string[]): T[] {
  const rank = (item: T): number => {
    const at = order.indexOf(nameOf(item))
    return at === -1 ? order.length : at
  }
  return [...items].sort((a, b) => rank(a) - rank(b))
}
