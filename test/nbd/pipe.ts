import { Duplex } from 'node:stream'

/** What happens to the bytes that one end sends. */
export interface PipeFaults {
  /** they arrive in pieces of at most so many bytes */
  pieces?: number
  /** so many arrive, then the sender is cut off */
  cutAfter?: number
}

class PipeEnd extends Duplex {
  peer: PipeEnd | undefined
  sent = 0
  readonly #faults: PipeFaults
  #ended = false

  constructor(faults: PipeFaults) {
    // as objects, pieces stay apart until they are read
    super({ readableObjectMode: true })
    this.#faults = faults
    this.on('error', () => undefined)
  }

  override _read(): void {
    // pushed to by the peer
  }

  override _write(chunk: Buffer, _encoding: string, done: (error?: Error) => void): void {
    const { pieces = chunk.length, cutAfter = Infinity } = this.#faults
    const arriving = chunk.subarray(0, Math.max(0, cutAfter - this.sent))
    this.sent += chunk.length
    for (let at = 0; at < arriving.length; at += pieces) this.peer?.push(arriving.subarray(at, at + pieces))
    if (this.sent >= cutAfter) this.destroy()
    done()
  }

  override _final(done: () => void): void {
    this.#end()
    done()
  }

  override _destroy(error: Error | null, done: (error: Error | null) => void): void {
    this.#end()
    done(error)
  }

  /** The peer reads what has arrived and then the end. */
  #end(): void {
    if (!this.#ended) this.peer?.push(null)
    this.#ended = true
  }
}

/** Two connected ends in memory; what `first` sends suffers `faults`, what `second` sends suffers `faultsBack`. */
export function pipe(faults: PipeFaults = {}, faultsBack: PipeFaults = faults): [first: PipeEnd, second: PipeEnd] {
  const [first, second] = [new PipeEnd(faults), new PipeEnd(faultsBack)]
  first.peer = second
  second.peer = first
  return [first, second]
}
