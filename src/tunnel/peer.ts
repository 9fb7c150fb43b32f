import type { PeerCredentials } from '../native.js'

/** Who is at the other end, as far as the carrier tells. */
export type Peer =
  | { readonly kind: 'unix'; readonly credentials: PeerCredentials | undefined }
  | { readonly kind: 'tcp'; readonly address: string }
  | { readonly kind: 'tls'; readonly address: string; readonly dn: string }
  /** a stream of which nothing is known */
  | { readonly kind: 'stream' }

export const streamPeer: Peer = { kind: 'stream' }
