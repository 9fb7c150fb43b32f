import { connect } from 'node:net'
import { errnoOf } from '../error.js'

/** Whether somebody listens on a unix path, be they too busy to take connections. */
export function isListenedOn(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect({ path })
    socket.once('connect', () => {
      socket.destroy()
      resolve(true)
    })
    // more wait for it than it has room for
    socket.on('error', (error) => resolve(errnoOf(error) === 'EAGAIN'))
  })
}
