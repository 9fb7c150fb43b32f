import type { Params } from './payloads.js'
import type { Peer } from './peer.js'
import type { OpenHandler } from './requests.js'
import type { SessionLimits } from './session.js'

export interface TunnelOptions extends SessionLimits {
  /** ms that the hello may take; default 5000 */
  helloTimeout?: number | undefined
  /** may also be set later: requests wait for it */
  onOpen?: OpenHandler | undefined
}

export interface ClientOptions extends TunnelOptions {
  /** that the server gave out, at most 512 bytes; default '' */
  token?: string | undefined
  /** who we are, for the server's `authorize` */
  params?: Params | undefined
}

export interface Authorization {
  token: string
  params: Params
}

export interface ServerOptions extends TunnelOptions {
  /** Answers what the client gets as `params` of its tunnel; what it throws refuses the client, with the message as reason. */
  authorize: (hello: Authorization, peer: Peer) => Params | undefined | Promise<Params | undefined>
}
