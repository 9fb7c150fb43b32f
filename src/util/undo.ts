/**
 * Steps to take back, newest first, unless the work as a whole succeeded:
 * `await using undo = new Undo(); …; undo.add(() => release(x)); …; undo.commit()`.
 * A step that throws while being undone does not stop the others; all such errors are thrown together at the end.
 */
export class Undo implements AsyncDisposable {
  #steps: (() => unknown)[] = []

  /** Registers what takes back the step that was just made. */
  add(step: () => unknown): void {
    this.#steps.push(step)
  }

  /** The work succeeded: forget the steps. */
  commit(): void {
    this.#steps = []
  }

  /** Takes back every registered step, newest first. */
  async undo(): Promise<void> {
    const errors: unknown[] = []
    for (let step = this.#steps.pop(); step !== undefined; step = this.#steps.pop()) {
      try {
        await step()
      } catch (error) {
        errors.push(error)
      }
    }
    if (errors.length > 0) throw new AggregateError(errors, 'could not undo every step')
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.undo()
  }
}
