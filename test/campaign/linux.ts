/** A real Linux guest at work on its disk; what it has flushed is known by heart. */
import type { GuestVerify } from '../support/guest.js'
import { Guest } from '../support/guest.js'
import type { PatternImage } from '../support/images.js'
import { BLOCK_SIZE } from '../support/pattern.js'
import type { Expected } from './content.js'
import { DISK, type Place } from './place.js'
import { random } from './plan.js'

const TURN = 100
const AT_ONCE = 4

export class LinuxGuest implements Disposable {
  readonly guest: Guest
  /** block → number of the write that was flushed last */
  readonly #flushed = new Map<number, number>()
  #over = false
  #writing: Promise<void> = Promise.resolve()

  private constructor(guest: Guest) {
    this.guest = guest
  }

  /** Waits until it is up, and sets it to work: random reads and writes, checked; and some of ours, flushed. */
  static async connect(place: Place, base: PatternImage): Promise<LinuxGuest> {
    const guest = await Guest.connect(place.serial)
    try {
      await guest.ready()
      await guest.base(DISK, base.seed, base.size)
      await guest.work(DISK, 'slowly')
    } catch (error) {
      guest[Symbol.dispose]()
      throw error
    }
    const linux = new LinuxGuest(guest)
    linux.#writing = linux.#write(base)
    return linux
  }

  async #write({ seed, size }: PatternImage): Promise<void> {
    const next = random(seed)
    try {
      while (!this.#over) {
        const written = new Map<number, number>()
        for (let i = 0; i < AT_ONCE; i++) {
          const block = Math.floor((next() * size) / BLOCK_SIZE)
          const { fields } = await this.guest.command(`write ${DISK} ${block}`)
          written.set(block, Number(fields['seq']))
        }
        const { fields } = await this.guest.command(`flush ${DISK}`)
        if (fields['err'] !== '0') throw new Error('a flush of the guest failed')
        for (const [block, sequence] of written) this.#flushed.set(block, sequence)
        await new Promise((resolve) => setTimeout(resolve, TURN))
      }
    } catch {
      // it was killed; what it flushed before must be there
    }
  }

  /** Alive: it stops, and reads its whole disk. */
  async verify(): Promise<GuestVerify> {
    this.#over = true
    await this.#writing
    await this.guest.stop()
    const result = await this.guest.verify(DISK)
    await this.guest.command(`flush ${DISK}`)
    return result
  }

  /** Of the disk's blocks, what must be there whatever was killed. */
  get expected(): Expected {
    return new Map([...this.#flushed].map(([block, since]) => [block, { since }]))
  }

  [Symbol.dispose](): void {
    this.#over = true
    this.guest[Symbol.dispose]()
  }
}
