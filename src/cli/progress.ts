import { SingleBar } from 'cli-progress'
import type { WriteStream } from 'node:tty'
import type { StreamProgress } from '../api/disk-stream.js'
import type { Context } from './context.js'
import { formatSize } from './output.js'

/** Shows how far something is. */
export interface ProgressView {
  at(position: StreamProgress): void
  /** why it stands still; undefined: it does not */
  note(why: string | undefined): void
  end(): void
}

export const quietView: ProgressView = { at: () => undefined, note: () => undefined, end: () => undefined }

const percent = ({ offset, size }: StreamProgress): number => (size === 0 ? 100 : Math.floor((offset / size) * 100))

export function isTerminal(stream: unknown): stream is WriteStream {
  return (stream as Partial<WriteStream>).isTTY === true
}

/** A bar on standard error where that is a terminal, else lines on standard output; JSON lines if asked for. */
export function makeView(context: Context, label: string, json: boolean): ProgressView {
  if (json) return jsonView(context)
  const stream = context.err.stream
  return isTerminal(stream) ? barView(stream, label) : lineView(context, label)
}

function jsonView(context: Context): ProgressView {
  return {
    at: ({ offset, size }) => context.print(JSON.stringify({ offset, size })),
    note: (why) => context.print(JSON.stringify({ waiting: why ?? null })),
    end: () => undefined,
  }
}

/** ms between two lines, unless it is the last one */
const LINE_INTERVAL = 900

function lineView(context: Context, label: string): ProgressView {
  let written = -Infinity
  return {
    at(position) {
      const { offset, size } = position
      const now = performance.now()
      if (offset < size && now - written < LINE_INTERVAL) return
      written = now
      context.print(
        `${label}: [${String(percent(position)).padStart(3)} %] ${formatSize(offset)} of ${formatSize(size)}`,
      )
    },
    note: (why) => context.print(why === undefined ? `${label}: goes on` : `${label}: waits: ${why}`),
    end: () => undefined,
  }
}

/** characters of a line at most besides what it begins with and the bar: sizes and a speed with a unit each, and what is between them */
const BESIDES = 55
const DEFAULT_COLUMNS = 80

/** A bar behind `label`, so long that the whole line fits on the terminal. */
export function drawBar({ columns }: WriteStream, label: string, progress: number): string {
  // 0: a terminal that does not know
  const width = Math.min(30, Math.max(10, (columns || DEFAULT_COLUMNS) - label.length - BESIDES))
  return `${label} [${'='.repeat(Math.round(progress * width)).padEnd(width)}] ${String(Math.floor(progress * 100)).padStart(3)} %`
}

function barView(stream: WriteStream, label: string): ProgressView {
  let speed = ''
  let why = ''
  let last: { offset: number; at: number } | undefined
  const bar = new SingleBar({
    stream,
    hideCursor: true,
    clearOnComplete: false,
    format: (_options, { progress, value, total }) => {
      const sizes = `${formatSize(value)} of ${formatSize(total)}`
      return `${drawBar(stream, `${label}:`, progress)}  ${sizes}  ${why || speed}`
    },
  })
  let started = false
  return {
    at({ offset, size }) {
      if (!started) bar.start(size, offset)
      started = true
      const now = performance.now()
      if (last !== undefined && now > last.at)
        speed = `${formatSize(((offset - last.offset) / (now - last.at)) * 1000)}/s`
      last = { offset, at: now }
      bar.setTotal(size)
      bar.update(offset)
    },
    note(reason) {
      why = reason === undefined ? '' : `waits: ${reason}`
    },
    end() {
      if (started) bar.stop()
      started = false
    },
  }
}
