import { MultiBar, type SingleBar } from 'cli-progress'
import type { WriteStream } from 'node:tty'
import type { StreamProgress } from '../api/disk-stream.js'
import type { Context } from './context.js'
import { formatSize } from './output.js'
import { drawBar, isTerminal, makeView, type ProgressView } from './progress.js'

/** Shows how far memory and each of the disks are. */
export interface MigrationView {
  /** `what`: 'Memory', 'Disk vda' */
  at(what: string, position: StreamProgress): void
  /** why it stands still; undefined: it does not */
  note(what: string, why: string | undefined): void
  /** Whatever was shown is there, if nobody has seen its last part come. */
  complete(): void
  end(): void
}

/** A bar for each on standard error where that is a terminal, else lines on standard output. */
export function makeMigrationView(context: Context): MigrationView {
  const { stream } = context.err
  const drawn = isTerminal(stream) ? bars(stream) : lines(context)
  const sizes = new Map<string, number>()
  return {
    ...drawn,
    at(what, position) {
      sizes.set(what, position.size)
      drawn.at(what, position)
    },
    complete() {
      for (const [what, size] of sizes) drawn.at(what, { offset: size, size })
    },
  }
}

type Drawn = Omit<MigrationView, 'complete'>

function lines(context: Context): Drawn {
  const views = new Map<string, ProgressView>()
  const done = new Map<string, number>()
  const notes = new Map<string, string>()
  const viewOf = (what: string): ProgressView => {
    const view = views.get(what) ?? makeView(context, what, false)
    views.set(what, view)
    return view
  }
  return {
    at(what, position) {
      // one line says that something is done
      if (position.offset >= position.size && done.get(what) === position.size) return
      done.set(what, position.offset)
      viewOf(what).at(position)
    },
    note(what, why) {
      if (notes.get(what) === why) return
      if (why === undefined) notes.delete(what)
      else notes.set(what, why)
      viewOf(what).note(why)
    },
    end: () => undefined,
  }
}

function bars(stream: WriteStream): Drawn {
  const notes = new Map<string, string>()
  const speeds = new Map<string, Speed>()
  const drawn = new Map<string, SingleBar>()
  const multi = new MultiBar({
    stream,
    hideCursor: true,
    clearOnComplete: false,
    format: (_options, { progress, value, total }, payload: { what: string }) => {
      const { what } = payload
      const why = notes.get(what)
      const last = why === undefined ? (speeds.get(what)?.text ?? '') : `waits: ${why}`
      return `${drawBar(stream, what.padEnd(10), progress)}  ${formatSize(value)} of ${formatSize(total)}  ${last}`
    },
  })
  return {
    at(what, { offset, size }) {
      const bar = drawn.get(what) ?? multi.create(size, offset, { what })
      drawn.set(what, bar)
      const speed = speeds.get(what) ?? new Speed()
      speeds.set(what, speed)
      speed.at(offset)
      bar.setTotal(size)
      bar.update(offset)
    },
    note(what, why) {
      if (why === undefined) notes.delete(what)
      else notes.set(what, why)
    },
    end: () => multi.stop(),
  }
}

class Speed {
  text = ''
  #last: { offset: number; at: number } | undefined

  at(offset: number): void {
    const now = performance.now()
    const last = this.#last
    if (last !== undefined && now > last.at && offset >= last.offset)
      this.text = `${formatSize(((offset - last.offset) / (now - last.at)) * 1000)}/s`
    this.#last = { offset, at: now }
  }
}
