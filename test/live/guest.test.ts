import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { open } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import type { TestContext } from 'node:test'
import { Guest, GuestError, guestFiles, GUEST_MEMORY_KIB } from '../support/guest.js'
import { emptyImage, overlay, patternImage, temporaryFolder } from '../support/images.js'
import { startNbdkit, trouble } from '../support/nbd-server.js'
import { BLOCK_SIZE, checkPattern, isZeroInBase } from '../support/pattern.js'
import { requires } from '../support/requires.js'

const MiB = 1024 * 1024

interface Drive {
  path: string
  format: string
  device?: string
}

/** A guest in a QEMU started by hand: its agent on the serial line. */
async function boot(t: TestContext, folder: string, drives: Drive[], flavour: 'cloud' | 'generic' = 'cloud') {
  const files = await guestFiles(flavour)
  const serial = join(folder, 'serial.sock')
  const args = [
    '-nodefaults',
    '-machine',
    'q35,accel=tcg',
    '-cpu',
    'max',
    '-display',
    'none',
    '-m',
    `${GUEST_MEMORY_KIB}k`,
  ]
  args.push('-kernel', files.kernel, '-initrd', files.initrd, '-append', files.cmdline)
  args.push('-chardev', `socket,id=s,path=${serial},server=on,wait=off`, '-serial', 'chardev:s', '-monitor', 'stdio')
  args.push('-device', 'virtio-scsi-pci,id=scsi0', '-device', 'qemu-xhci', '-device', 'virtio-serial-pci')
  args.push('-chardev', `socket,id=p,path=${join(folder, 'port.sock')},server=on,wait=off`)
  args.push('-device', 'virtserialport,chardev=p,name=org.virstream.guest.0')
  for (const [i, { path, format, device = 'virtio-blk-pci' }] of drives.entries()) {
    args.push('-drive', `if=none,id=d${i},format=${format},file=${path},cache=none,file.locking=off`)
    args.push('-device', `${device},drive=d${i}`)
  }
  const qemu = spawn('qemu-system-x86_64', args, { stdio: ['pipe', 'ignore', 'inherit'] })
  const exited = once(qemu, 'exit')
  t.after(async () => {
    qemu.kill('SIGKILL')
    await exited
  })
  const guest = await Guest.connect(serial)
  t.after(() => guest[Symbol.dispose]())
  await guest.ready()
  return { guest, exited, monitor: (line: string) => qemu.stdin.write(`${line}\n`) }
}

test('a guest works on an overlay, finds every block right, and its digest is that of the image', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const folder = await temporaryFolder(t)
  const base = await patternImage(folder, 32 * MiB)
  const path = await overlay(folder, base.path, { size: 48 * MiB })
  const { guest, exited } = await boot(t, folder, [{ path, format: 'qcow2' }])

  assert.deepEqual(await guest.disks(), new Map([['vda', 48 * MiB]]))
  await guest.base('vda', base.seed, base.size)
  await guest.work('vda')
  await assert.rejects(guest.work('vda'), /GuestError: guest: 'vda' is at work already/)
  assert.equal((await guest.verify('vda')).bad, 0)
  const stat = await guest.stop()
  assert.ok(stat.reads > 50 && stat.writes > 50, JSON.stringify(stat))
  const { bad, err, written } = await guest.verify('vda')
  assert.deepEqual({ bad, err }, { bad: 0, err: 0 })
  const digest = await guest.digest('vda')
  await guest.command('poweroff')
  await exited

  const report = await checkPattern(path, 'qcow2', base.seed, base.size)
  assert.deepEqual(report, { digest, blocks: (48 * MiB) / BLOCK_SIZE, base: report.base, written, bad: 0, first: -1 })
  assert.equal(report.base + written, report.blocks)
})

test('a block that changed behind the back of the guest is found', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const folder = await temporaryFolder(t)
  const { path, seed, size } = await patternImage(folder, 16 * MiB)
  const { guest } = await boot(t, folder, [{ path, format: 'raw' }])
  await guest.base('vda', seed)
  assert.deepEqual(await guest.verify('vda'), { bad: 0, err: 0, first: -1, written: 0, blocks: size / BLOCK_SIZE })

  let block = 1000
  while (isZeroInBase(seed, block)) block++
  const image = await open(path, 'r+')
  await image.write(Buffer.alloc(1), 0, 1, block * BLOCK_SIZE + 4095 - (4095 % 4))
  await image.close()
  const found = await guest.verify('vda')
  assert.deepEqual([found.bad, found.first], [1, block])
  assert.match(guest.alerts.join('\n'), new RegExp(`! vda block=${block} wanted=0 holds=base,${block},`))
  assert.equal((await checkPattern(path, 'raw', seed)).first, block)

  await guest.command(`write vda ${block}`)
  assert.equal((await guest.verify('vda')).bad, 0)
  assert.equal((await guest.command(`read vda ${block}`)).fields['kind'], 'written')
})

test('after a reboot the guest takes what it wrote before for right, and nothing else', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const folder = await temporaryFolder(t)
  const path = await emptyImage(folder, 'raw', 8 * MiB)
  const { guest } = await boot(t, folder, [{ path, format: 'raw' }])
  await guest.command('write vda 5')
  await guest.command('reboot')
  await guest.ready()
  const forgotten = await guest.verify('vda')
  assert.deepEqual([forgotten.bad, forgotten.first], [1, 5])
  const adopted = await guest.adopt('vda')
  assert.deepEqual([adopted.bad, adopted.written], [0, 1])
})

test('the agent answers on its virtio port as well, and runs commands of a shell', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64')) return
  const folder = await temporaryFolder(t)
  const { guest: serial } = await boot(t, folder, [])
  using port = await Guest.connect(join(folder, 'port.sock'))
  await port.ready()
  const { lines, fields } = await port.command('sh echo one; echo two; exit 3')
  assert.deepEqual([lines, fields['exit']], [['one', 'two'], '3'])
  await port.command('ticks on')
  while (port.ticks.length < 5) await delay(10)
  await port.command('ticks off')
  assert.equal(serial.ticks.length, 0)
  await assert.rejects(serial.command('no-such-thing'), /unknown command 'no-such-thing'/)
})

test('a request that fails is an error and not a wrong block', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:nbdkit')) return
  const folder = await temporaryFolder(t)
  const base = await patternImage(folder, 8 * MiB)
  const faults = trouble(join(folder, 'trouble'), 'all')
  const server = await startNbdkit(t, { plugin: ['file', base.path], socket: join(folder, 's'), ...faults })
  const path = await overlay(folder, server.uri)
  const { guest } = await boot(t, folder, [{ path, format: 'qcow2' }])
  await guest.base('vda', base.seed)
  await guest.command('write vda 17')
  await guest.work('vda', 'reads')
  await faults.on()
  const during = await guest.verify('vda')
  assert.equal(during.bad, 0)
  assert.ok(during.err > 1000, JSON.stringify(during))
  await faults.off()
  const { writes, bad, errors } = await guest.stop()
  assert.deepEqual([writes, bad], [1, 0])
  assert.ok(errors >= during.err)
  const { bad: wrong, err } = await guest.verify('vda')
  assert.deepEqual([wrong, err], [0, 0])
})

test('the power button turns the guest off', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64')) return
  const { guest, exited, monitor } = await boot(t, await temporaryFolder(t), [])
  monitor('system_powerdown')
  await exited
  assert.ok(guest.output.includes('POWER off'))
  await assert.rejects(guest.command('ping'), GuestError)
})

test('the guest with the full kernel sees virtio, SCSI, SATA and USB disks', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const folder = await temporaryFolder(t)
  const devices = ['virtio-blk-pci', 'scsi-hd', 'ide-hd', 'usb-storage']
  const drives: Drive[] = []
  for (const [i, device] of devices.entries()) {
    drives.push({ path: await emptyImage(folder, 'raw', (i + 1) * MiB, device), format: 'raw', device })
  }
  const { guest } = await boot(t, folder, drives, 'generic')
  for (const disk of ['vda', 'sda', 'sdb', 'sdc']) assert.equal((await guest.verify(disk)).bad, 0)
  const sizes = [...(await guest.disks()).values()]
  assert.deepEqual(
    sizes.sort(),
    [1, 2, 3, 4].map((n) => n * MiB),
  )
})
