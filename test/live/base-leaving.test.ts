/** The server of the base is told to end, and answers that it shuts down for as long as it has clients. */
import assert from 'node:assert/strict'
import { join } from 'node:path'
import { test } from 'node:test'
import {
  VIR_DOMAIN_PAUSED,
  VIR_DOMAIN_PAUSED_IOERROR,
  VIR_DOMAIN_RUNNING,
  type StreamDiskState,
} from '../../src/index.js'
import { diskXml, startGuest, testRoot, until } from '../support/domain.js'
import { overlay, patternImage } from '../support/images.js'
import { startNbdkit, trouble } from '../support/nbd-server.js'
import { requires } from '../support/requires.js'
import { assertStreamed } from '../support/streamed.js'

const MiB = 1024 * 1024

for (const engine of ['job', 'pull'] as const)
  test(`engine '${engine}': a base that shuts down is waited for, and a guest that was paused by it goes on`, async (t) => {
    if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img', 'program:nbdkit')) return
    const root = await testRoot(t)
    const base = await patternImage(root.folder, 48 * MiB)
    const leaving = trouble(join(root.folder, 'leaving'), 'pread', 'ESHUTDOWN')
    const server = await startNbdkit(t, {
      plugin: ['file', base.path],
      socket: join(root.folder, 'base.nbd'),
      ...leaving,
    })
    const path = await overlay(root.folder, server.uri)
    const { dom, guest } = await startGuest(t, root, { name: `leaving-${engine}`, devices: diskXml('vda', path) })
    await guest.base('vda', base.seed, base.size)
    await guest.work('vda')
    const state = async (): Promise<StreamDiskState | undefined> => (await dom.streamDiskInfo())[0]
    const offset = async (): Promise<number> => (await state())?.offset ?? 0
    const stream = await dom.stream('vda', { bandwidth: 2 * MiB, engine })
    await until('the stream moves', async () => (await offset()) > MiB)

    await leaving.on()
    await until('the guest is paused', async () => (await dom.getState()).state === VIR_DOMAIN_PAUSED)
    assert.equal((await dom.getState()).reason, VIR_DOMAIN_PAUSED_IOERROR)
    await until('the stream says why it waits', async () =>
      /^the base does not answer: its server is shutting down$/.test((await state())?.error ?? ''),
    )
    const reached = await offset()
    await leaving.off()
    await until('the stream moves again', async () => (await offset()) > reached)
    await until('the guest runs again', async () => (await dom.getState()).state === VIR_DOMAIN_RUNNING)

    await server.kill('SIGTERM')
    await server.start()
    await stream.setBandwidth(0)
    await stream.finished
    await assertStreamed({ dom, guest, path, base })
  })
