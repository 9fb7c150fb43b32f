/** The end of a process that a test has started. */
import { native } from '../../src/native.js'
import type { Cleanup } from './images.js'

/** Ends the process when it is called, or with the test; resolves when it is gone. */
export function killerOf(t: Cleanup, pid: number): () => Promise<void> {
  let ended!: () => void
  const gone = new Promise<void>((resolve) => {
    ended = resolve
  })
  const watch = native.watchProcess(pid, () => ended())
  watch.unref()
  const kill = async (): Promise<void> => {
    watch.ref()
    watch.kill(9)
    await gone
  }
  t.after(kill)
  return kill
}
