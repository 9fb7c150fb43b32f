/** Where a run of the campaign takes place: files and processes that its own process and the judge both know. */
import { appendFileSync, existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'

export const NAME = 'guest'
export const DISK = 'vda'

export interface Place {
  folder: string
  uri: string
  /** the disk's own image */
  image: string
  /** what the image's header named at first, and what it names when a partial stream has ended */
  backing: string
  partialBase: string
  /** the serial line of a Linux guest */
  serial: string
}

const logFile = (place: Place): string => join(place.folder, 'life.log')

/** One line, on disk before the next thing is done. */
export function note(place: Place, line: string): void {
  appendFileSync(logFile(place), `${line}\n`)
}

/** What our process said so far. */
export function notes(place: Place): string[] {
  return existsSync(logFile(place)) ? readFileSync(logFile(place), 'utf8').split('\n').slice(0, -1) : []
}

/** Folders of running domains and of storage daemons. */
export function runDirs(place: Place): string[] {
  return ['run/qemu', 'run/offline'].flatMap((dir) => {
    const path = join(place.folder, 'root', dir)
    return existsSync(path) ? readdirSync(path).map((name) => join(path, name)) : []
  })
}

/** The processes that have the images open: a QEMU or a storage daemon, none or one of them. */
export function holders(place: Place): number[] {
  const files = runDirs(place).flatMap((dir) => [join(dir, 'pid'), join(dir, 'qemu/pid')])
  return files.flatMap((file) => {
    const pid = existsSync(file) ? Number(readFileSync(file, 'utf8')) : 0
    return pid > 0 && isAlive(pid) ? [pid] : []
  })
}

/** Does it run? One that ended but was not waited for by its parent does not. */
export function isAlive(pid: number): boolean {
  try {
    return !/\) [ZX] /.test(readFileSync(`/proc/${pid}/stat`, 'latin1'))
  } catch {
    return false
  }
}

/** As `killAll`, for a judge who has to wait until they are gone. */
export function killNoted(place: Place, pids: readonly number[]): boolean {
  const killed = killAll(pids)
  if (killed) note(place, `killed ${pids.join(' ')}`)
  return killed
}

/** True when one of them was there to be killed. */
export function killAll(pids: readonly number[]): boolean {
  let killed = false
  for (const pid of pids) {
    try {
      process.kill(pid, 'SIGKILL')
      killed = true
    } catch {
      // it has just ended
    }
  }
  return killed
}
