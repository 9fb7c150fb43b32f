/**
 * The native addon: only what Node cannot do. This is the only importer of it. Every call is synchronous unless it takes a
 * callback, works in worker threads, and throws errors that look like Node's own (`code`, `errno`, `syscall`, `path`).
 */
import { createRequire } from 'node:module'

/** One descriptor that a child inherits: `source` here becomes `target` there. */
export interface InheritedFd {
  source: number
  target: number
}

export interface SpawnOptions {
  /** absolute path of the program */
  file: string
  /** argv, with argv[0] */
  args: string[]
  /** the whole environment */
  env: Record<string, string>
  cwd?: string
  /** what is not listed is closed in the child; 0, 1 and 2 must be listed */
  fds: InheritedFd[]
  uid?: number
  gid?: number
  /** supplementary groups; default: none when uid is given */
  groups?: number[]
  /** SELinux exec label, written to /proc/thread-self/attr/exec in the child */
  selinuxLabel?: string
  /** AppArmor profile to change to at exec */
  apparmorProfile?: string
  umask?: number
  /** setsid(): the child outlives us and our terminal */
  newSession?: boolean
}

export interface ProcessExit {
  /** exit code; null when a signal ended it or when the process is not our child */
  code: number | null
  /** signal number; null when it exited or is not our child */
  signal: number | null
}

/** A process that is watched through a pidfd: never mixed up with a later process of the same number. */
export interface ProcessWatch {
  readonly pid: number
  /** false when the process is gone already */
  kill(signal: number): boolean
  /** stop watching; the process goes on */
  close(): void
  /** let the event loop end although the process lives */
  unref(): void
  ref(): void
}

export interface FileLock {
  type: 'read' | 'write'
  start: number
  /** 0: to the end of the file */
  length: number
}

export interface PeerCredentials {
  pid: number
  uid: number
  gid: number
}

/** What a thread inside libvirt tells, or asks and waits for. */
export interface LibvirtNotice {
  isQuestion: boolean
  /** names the question when it is answered */
  token: number
  /** the number that libvirt was given for the callback */
  opaque: number
  /** address of what is asked: credentials (virConnectCredential) */
  data: bigint
  /** of a question: how many credentials; else why a connection was closed */
  number: number
}

/** libvirt's library in this process: its event loop runs on ours, its calls on threads of their own. */
export interface LibvirtHost {
  /**
   * Calls the C function at an address on a thread that is never waited for, not even at the end of the process. Arguments:
   * a number or bigint (integers, addresses), a string, null, or bytes, which are a copy while the call runs and are
   * written back before it is told: keep them until then. `answersAddress`: 0 is its failure, otherwise a negative int. Eight calls of one
   * `lane` run at a time, the others wait in their order; 0: it waits for none. While calls are out, the
   * event loop lives.
   */
  call(id: number, lane: number, address: bigint, answersAddress: boolean, args: readonly unknown[]): void
  /** One more call of a lane runs now. */
  stretch(lane: number): void
  /** The sockets that calls of a lane have given to the event loop are shut down, as if the other side had gone. False: it has none, or what it has leads to a program (ssh). */
  hangUp(lane: number): boolean
  /** Ends the waiting of a thread that asked. */
  answer(token: number, answer: number): void
  /** no thread of this process has had it before: libvirt does not know the functions yet */
  readonly isFirst: boolean
  /**
   * addresses: virEventRegisterImpl's six functions, a virConnectAuthCallbackPtr that asks, a virConnectCloseFunc that tells, a
   * virErrorFunc that does nothing, and a function for `call` that is made of libvirt's own (native/libvirt-stats.h)
   */
  functions: Readonly<
    Record<
      | 'addHandle'
      | 'updateHandle'
      | 'removeHandle'
      | 'addTimeout'
      | 'updateTimeout'
      | 'removeTimeout'
      | 'authenticate'
      | 'closed'
      | 'ignore'
      | 'domainNumbers',
      bigint
    >
  >
}

export interface NativeAddon {
  /** fork + exec; returns the pid. Failing steps in the child (setuid, exec, …) throw here, with the syscall's name. */
  spawn(options: SpawnOptions): number
  /**
   * As `spawn`, but the child stops before it takes its labels, its user and the program: at a number that is that of the
   * program later. `connect`: path of a unix socket to which the child itself connects before it stops (its peer sees
   * the child's pid, and our user); the connection stays open in the program, and `connection` is a copy of it. The
   * child ends when we do. Watch it once it goes on.
   */
  spawnHeld(options: SpawnOptions, connect?: string): { pid: number; connection?: number }
  /** Lets a held child go on, and answers once it is the program. Throws as `spawn` does. ESRCH when there is none. */
  resumeHeld(pid: number): void
  /** Ends a held child. ESRCH when there is none. */
  dropHeld(pid: number): void
  /** Watches any process by pid, and reaps it if spawn() started it; `onExit` runs once, on the event loop, also for a process that is not our child. ESRCH when there is none. */
  watchProcess(pid: number, onExit: (exit: ProcessExit) => void): ProcessWatch

  /** A listening unix stream socket bound to `path` with that file mode, close-on-exec. */
  listenUnix(path: string, mode: number, backlog: number): number
  /** A connected unix stream socket, blocking only as long as connect does; non-blocking afterwards. */
  connectUnix(path: string): number
  /** Two connected unix stream sockets, close-on-exec, non-blocking. */
  socketpair(): [number, number]
  /** Writes bytes with descriptors attached (SCM_RIGHTS). Answers how many bytes went out, 0 when the socket is full; the descriptors go with the first. */
  sendFds(socket: number, bytes: Uint8Array, fds: readonly number[]): number
  /** Reads up to maxBytes and any descriptors (close-on-exec); undefined when nothing is there yet; empty bytes at the end of the stream. */
  recvFds(socket: number, maxBytes: number): { bytes: Uint8Array; fds: number[] } | undefined
  /** SO_PEERCRED of a unix socket */
  peerCredentials(socket: number): PeerCredentials
  /** TCP_NOTSENT_LOWAT: a TCP socket takes no more while so many bytes in it were not sent yet. ENOTSUP and the like when it is no TCP socket. */
  setNotSentLowat(socket: number, bytes: number): void
  /** Sends one datagram to a unix socket; '@name' is one in the abstract namespace. Never waits. */
  sendDatagram(path: string, text: string): void
  /**
   * Closes a descriptor that this addon gave out. What `fs.open` gave out is closed by `fs.close` only: a worker thread
   * keeps a list of those and closes what is on it when it ends, by then perhaps someone else's.
   */
  close(fd: number): void

  /** Open-file-description lock (F_OFD_SETLK): true when got, false when someone else holds a conflicting one. */
  lockFile(fd: number, lock: FileLock): boolean
  unlockFile(fd: number, start: number, length: number): void
  /** F_OFD_GETLK: the conflicting lock that another description holds; its pid is -1 for OFD locks. */
  testLock(fd: number, lock: FileLock): (FileLock & { pid: number }) | undefined
  /** A copy of another process's descriptor (pidfd_getfd, Linux 5.6): the same open file, with its locks. EPERM when we may not trace it. */
  copyFd(pid: number, fd: number): number

  /**
   * Makes this thread the one of the process that has libvirt; EBUSY when another one has. `saveError` is the address of
   * virSaveLastError. `onWake` gets what calls have answered, three of each: id, answer, address of a virError or 0.
   */
  hostLibvirt(
    saveError: bigint,
    onWake: (done: readonly (number | bigint)[], notices: readonly LibvirtNotice[]) => void,
  ): LibvirtHost

  /** value, or undefined when the attribute is not set; symbolic links are not followed */
  getxattr(path: string, name: string): Uint8Array | undefined
  setxattr(path: string, name: string, value: Uint8Array): void
  removexattr(path: string, name: string): void
  listxattr(path: string): string[]
}

const require = createRequire(import.meta.url)

function load(): NativeAddon {
  const tried: string[] = []
  // built here, or shipped ready-made in the package (Node-API: one file serves every Node version)
  for (const path of ['../../build/Release/virstream.node', `../../prebuilds/linux-${process.arch}/virstream.node`]) {
    try {
      return require(path) as NativeAddon
    } catch (error) {
      tried.push(error instanceof Error ? error.message : String(error))
    }
  }
  throw new Error(
    `the native part of virstream is missing; "node scripts/install-native.mjs" in its folder builds it\n${tried.join('\n')}`,
  )
}

export const native: NativeAddon = load()
