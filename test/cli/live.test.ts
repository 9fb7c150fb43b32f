/** The command on real QEMU, each line a process of its own, as a user types them. */
import assert from 'node:assert/strict'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import type { TestContext } from 'node:test'
import { diskXml, guestXml, plainXml, processesOf, until } from '../support/domain.js'
import { Guest } from '../support/guest.js'
import { backingOf, emptyImage, overlay, patternImage, temporaryFolder } from '../support/images.js'
import { requires } from '../support/requires.js'
import type { CliResult } from './run.js'
import { end, says, start } from './run.js'
import { assertRight } from '../support/streamed.js'

const MiB = 1024 * 1024

interface Shell {
  folder: string
  env: NodeJS.ProcessEnv
  /** a command that has to work: what it prints */
  ok: (...words: string[]) => Promise<string>
  /** a command, however it ends */
  run: (...words: string[]) => Promise<CliResult>
}

/** A tree of its own, in which nothing runs any more when the test is over. */
async function shell(t: TestContext): Promise<Shell> {
  const folder = await temporaryFolder(t)
  const env = { VIRSTREAM_DEFAULT_URI: '', XDG_STATE_HOME: folder }
  t.after(() => {
    for (const pid of processesOf(folder)) process.kill(pid, 'SIGKILL')
  })
  const run = (...words: string[]): Promise<CliResult> => {
    const child = start(words, env)
    child.stdin?.end()
    return end(child)
  }
  const ok = async (...words: string[]): Promise<string> => {
    const { status, stdout, stderr } = await run(...words)
    assert.equal(status, 0, `${words.join(' ')}: ${stderr}`)
    return stdout
  }
  return { folder, env, ok, run }
}

async function definePlain({ folder, ok }: Shell, size = 64 * MiB): Promise<void> {
  const base = await patternImage(folder, size)
  const path = await overlay(folder, base.path)
  const file = join(folder, 'guest.xml')
  await writeFile(file, plainXml({ devices: `${diskXml('vda', path)}<console type='pty'/>` }))
  assert.match(await ok('define', file), /^Domain 'guest' defined from /)
}

test('a guest is defined, started, streamed and shut down by commands, each a process of its own', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const sh = await shell(t)
  const { folder, ok } = sh
  const base = await patternImage(folder, 64 * MiB)
  const path = await overlay(folder, base.path)
  const file = join(folder, 'guest.xml')
  await writeFile(file, await guestXml(folder, { devices: diskXml('vda', path) }))
  await ok('define', file)
  assert.equal(await ok('start', 'guest'), "Domain 'guest' started\n\n")
  assert.equal(await ok('domstate', 'guest', '--reason'), 'running (booted)\n\n')
  assert.match(await ok('list'), / 1 {4}guest {3}running\n/)
  const guest = await Guest.connect(join(folder, 'guest.serial'))
  t.after(() => guest[Symbol.dispose]())
  await guest.ready()
  await guest.base('vda', base.seed, base.size)

  assert.match(await ok('stream-disk', 'guest', 'virtio-disk0', '--bandwidth', '256K'), /started/)
  const [state] = JSON.parse(await ok('stream-info', 'guest', '--json')) as { disk: string; bandwidth: number }[]
  assert.deepEqual([state?.disk, state?.bandwidth], ['vda', 256 * 1024])
  assert.match(await ok('blockjob', 'guest', 'vda'), /^Block Pull: \[ +\d+ %\] {4}Bandwidth limit: 262144 bytes\/s/)
  // what the guest writes needs no copying, so from here on the stream may end at any time
  await guest.work('vda')
  await sh.run('blockjob', 'guest', 'vda', '0')
  assert.match(
    await ok('stream-disk', 'guest', 'vda', '--attach', '--wait'),
    /(Stream of disk 'vda' complete|Disk 'vda' needs no backing image, nothing is left to stream)\n$/,
  )
  assert.equal(await ok('stream-info', 'guest'), "No disk of domain 'guest' is being streamed\n\n")
  assert.match(await ok('dumpxml', 'guest'), /<backingStore\/>/)
  assert.doesNotMatch(await ok('dumpxml', 'guest', '--inactive'), /<backingStore type/)

  await assertRight(guest)
  await guest.command('poweroff').catch(() => undefined)
  await until('QEMU has ended', () => processesOf(folder).length === 0)
  assert.match(await ok('domstate', 'guest', '--reason'), /^shut off \(shutdown\)/)
  assert.equal(await ok('undefine', 'guest'), "Domain 'guest' has been undefined\n\n")
})

test('Ctrl-C and kill -9 in the middle of --wait leave the stream running, and it can be followed again', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const sh = await shell(t)
  await definePlain(sh)
  await sh.ok('start', 'guest', '--paused')
  // what makes no sense begins nothing
  for (const command of ['stream-disk', 'blockpull']) {
    const { stderr } = await sh.run(command, 'guest', 'vda', '--wait', '--timeout', '0')
    assert.equal(stderr, "error: --timeout must be a whole number of at least 1, not '0'\n")
  }
  const waiting = start(['stream-disk', 'guest', 'vda', '--wait', '--bandwidth', '256K'], sh.env)
  await says(waiting.stdout, / of 64\.000 MiB\n/)

  const meanwhile = await sh.run('list')
  assert.equal(meanwhile.status, 1)
  assert.match(
    meanwhile.stderr,
    new RegExp(`is in use by process '${waiting.pid ?? 0}' \\(VIR_ERR_OPERATION_INVALID\\)`),
  )

  waiting.kill('SIGINT')
  const detached = await end(waiting)
  assert.equal(detached.status, 130)
  assert.match(detached.stderr, /virstream stream-disk guest vda --attach --wait\n/)
  assert.match(await sh.ok('stream-info', 'guest'), / vda +virtio-disk0 .* running\n/)

  const again = start(['stream-disk', 'guest', 'vda', '--attach', '--wait'], sh.env)
  await says(again.stdout, / of 64\.000 MiB\n/)
  again.kill('SIGKILL')
  assert.equal((await end(again)).signal, 'SIGKILL')
  assert.match(await sh.ok('stream-info', 'guest'), / vda +virtio-disk0 .* running\n/)

  const late = await sh.run('stream-disk', 'guest', 'vda', '--attach', '--wait', '--timeout', '1')
  assert.equal(late.status, 1)
  assert.match(late.stderr, /aborted after 1 s; what was copied stays/)
  assert.match(await sh.ok('stream-info', 'guest'), /^No disk/)

  const whole = await sh.ok('stream-disk', 'guest', 'vda', '--wait')
  assert.match(whole, /\[100 %\] 64\.000 MiB of 64\.000 MiB\nStream of disk 'vda' complete\n$/)
  const after = await sh.ok('stream-disk', 'guest', 'vda', '--attach', '--wait')
  assert.equal(after, "Disk 'vda' needs no backing image, nothing is left to stream\n")
  await sh.ok('destroy', 'guest')
})

test('event waits for the end of a stream that another process began', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const sh = await shell(t)
  await definePlain(sh, 32 * MiB)
  await sh.ok('start', 'guest', '--paused')
  await sh.ok('blockpull', 'guest', 'vda', '--bandwidth', '2')
  const heard = await sh.ok('event', '--event', 'block-job', '--domain', 'guest', '--timeout', '60')
  assert.match(
    heard,
    /^event 'block-job' for domain 'guest': Block Pull for .*overlay\.qcow2 completed\nevents received: 1\n/,
  )
  await sh.ok('destroy', 'guest')
})

test('disks are attached and detached, and a base that has moved is told', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const sh = await shell(t)
  await definePlain(sh, 4 * MiB)
  const below = await emptyImage(sh.folder, 'qcow2', MiB, 'below.qcow2')
  const image = await overlay(sh.folder, below, { name: 'data.qcow2', backingFormat: 'qcow2' })
  const targets = async (...options: string[]): Promise<string[]> => {
    const disks = JSON.parse(await sh.ok('domblklist', 'guest', '--json', ...options)) as { target: string }[]
    return disks.map(({ target }) => target)
  }
  await sh.ok('start', 'guest', '--paused')
  const attach = ['attach-disk', 'guest', image, 'vdb', '--subdriver', 'qcow2', '--serial', 's1', '--alias', 'ua-data']
  assert.match(
    await sh.ok(...attach, '--print-xml'),
    /^<disk type='file' device='disk'>[^]*<target dev='vdb' bus='virtio'/,
  )
  assert.equal(await sh.ok(...attach, '--persistent'), 'Disk attached successfully\n\n')
  assert.deepEqual(
    [await targets(), await targets('--inactive')],
    [
      ['vda', 'vdb'],
      ['vda', 'vdb'],
    ],
  )
  assert.match(await sh.ok('domblkinfo', 'guest', 'ua-data'), /^Capacity: +1048576\n/)
  const words = ['--sourcetype', 'block', '--wwn', '5000c50015ea71ad', '--iothread', '1', '--print-xml']
  const xml = await sh.ok('attach-disk', 'guest', '/dev/none', 'sda', ...words)
  assert.match(xml, /^<disk type='block'[^]* iothread='1'[^]*<source dev='\/dev\/none'[^]*<wwn>5000c50015ea71ad<\/wwn>/)
  const again = await sh.run(...attach)
  assert.match(
    again.stderr,
    /^error: Failed to attach disk\nerror: target 'vdb' already exists \(VIR_ERR_OPERATION_INVALID\)/,
  )
  assert.equal(await sh.ok('blockresize', 'guest', 'vdb', '3M'), "Block device 'vdb' is resized\n\n")
  assert.match(await sh.ok('domblkinfo', 'guest', 'vdb'), /^Capacity: +3145728\n/)
  assert.match(
    (await sh.run('blockresize', 'guest', 'vdx', '3M')).stderr,
    /^error: Failed to resize block device 'vdx'\nerror: invalid path 'vdx'.* \(VIR_ERR_INVALID_ARG\)/,
  )
  assert.match(
    (await sh.run('blockcommit', 'guest', 'vdb')).stderr,
    /^error: Failed to commit disk 'vdb' of domain 'guest'\nerror: commit of 'vdb' active layer requires active flag/,
  )
  const kept = await sh.ok('blockcommit', 'guest', 'vdb', '--keep-overlay')
  assert.equal(kept, 'Commit complete, overlay image kept\n')
  assert.equal(await sh.ok('blockcommit', 'guest', 'vdb', '--active', '--wait'), 'Now in synchronized phase\n')
  assert.match(await sh.ok('blockjob', 'guest', 'vdb'), /^Active Block Commit: \[100 %\]/)
  await sh.ok('blockjob', 'guest', 'vdb', '--abort')
  assert.equal(await sh.ok('blockcommit', 'guest', 'vdb', '--pivot'), 'Successfully pivoted\n')
  assert.match(await sh.ok('domblklist', 'guest'), /vdb +\S+\/below\.qcow2\n/)
  assert.equal(await sh.ok('detach-disk', 'guest', below, '--config'), 'Disk detached successfully\n\n')
  assert.deepEqual([await targets(), await targets('--inactive')], [['vda', 'vdb'], ['vda']])
  await sh.ok('destroy', 'guest')

  const file = join(sh.folder, 'disk.xml')
  await writeFile(file, diskXml('vdb', image))
  assert.equal(await sh.ok('attach-device', 'guest', file), 'Device attached successfully\n\n')
  assert.deepEqual(await targets(), ['vda', 'vdb'])
  assert.equal(await sh.ok('detach-device', 'guest', file, '--current'), 'Device detached successfully\n\n')
  assert.deepEqual(await targets(), ['vda'])

  await writeFile(file, "<disk type='file' device='cdrom'><target dev='sda' bus='sata'/></disk>")
  assert.match(
    (await sh.run('update-device', 'guest', file, '--config')).stderr,
    /^error: Failed to update device from .*\nerror: target sda doesn't exist\. \(VIR_ERR_INVALID_ARG\)/,
  )
  await writeFile(file, diskXml('vda', join(sh.folder, 'overlay.qcow2'), { driver: "cache='none'" }))
  assert.equal(await sh.ok('update-device', 'guest', file), 'Device updated successfully\n\n')
  assert.match(await sh.ok('dumpxml', 'guest'), /cache='none'/)

  const moved = await patternImage(sh.folder, 4 * MiB, 8)
  assert.match(await sh.ok('stream-disk', 'guest', 'vda', '--new-base', moved.path), /^Disk 'vda' reads from base /)
  assert.equal(await backingOf(join(sh.folder, 'overlay.qcow2')), moved.path)
  assert.match(
    (await sh.run('stream-disk', 'guest', 'vda', '--new-base', moved.path, '--wait')).stderr,
    /--wait goes with a whole stream/,
  )
})

test('what cannot be done is said in the words of QEMU, and of libvirt', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const sh = await shell(t)
  const file = join(sh.folder, 'missing.xml')
  await writeFile(file, plainXml({ name: 'missing', devices: diskXml('vda', join(sh.folder, 'none.qcow2')) }))
  await sh.ok('define', file)
  const { status, stderr } = await sh.run('start', 'missing')
  assert.equal(status, 1)
  assert.match(
    stderr,
    /^error: Failed to start domain 'missing'\nerror: .*none\.qcow2.*No such file or directory \(VIR_ERR_/,
  )
  await writeFile(file, '<domain')
  assert.match((await sh.run('define', file)).stderr, /line \d.*\(VIR_ERR_XML_DETAIL\)\n$/)
  assert.match((await sh.run('domstate', 'missing')).stdout, /^shut off/)
})
