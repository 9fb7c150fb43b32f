/** A root that a process of its own has open, which can be killed as often as a test likes. */
import { join } from 'node:path'
import { Connect } from '../../src/index.js'
import { killAll } from '../campaign/place.js'
import { daemonProcess } from './daemon-process.js'
import { processesOf, type TestRoot } from './domain.js'
import { type Cleanup, temporaryFolder } from './images.js'

/** Kills whoever has the root; another one opens it. */
export type Crash = () => Promise<void>

/** `t` must undo newest first. */
export async function daemonRoot(t: Cleanup): Promise<TestRoot & { crash: Crash }> {
  const folder = await temporaryFolder(t)
  const path = join(folder, 'root')
  const uri = `virstream+unix://${join(path, 'run/virstreamd.sock')}`
  let daemon = await daemonProcess(t, path)
  t.after(() => void killAll(processesOf(folder)))
  const root = { folder, uri, conn: await Connect.open(uri), options: {} }
  t.after(() => root.conn.close())
  const crash = async (): Promise<void> => {
    await daemon.end('SIGKILL')
    await root.conn.close().catch(() => undefined)
    daemon = await daemonProcess(t, path)
    root.conn = await Connect.open(uri)
  }
  return Object.assign(root, { crash })
}
