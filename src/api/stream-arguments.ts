import { MAX_WEIGHT } from '../conf/stream-request.js'
import type { StreamOptions } from '../driver.js'
import { failFrom } from '../error.js'
import { VIR_STREAM_DISK_ONE, VIR_STREAM_DISK_START, VIR_STREAM_DISK_STOP } from '../stream-flags.js'
import type { Arguments } from './arguments.js'

const fail = failFrom('VIR_FROM_DOM')

const modes: readonly number[] = [VIR_STREAM_DISK_ONE, VIR_STREAM_DISK_START, VIR_STREAM_DISK_STOP]

/** The rules of virDomainStreamDisk, before the driver is asked. */
export function checkStream(
  check: Arguments,
  disk: unknown,
  offset: unknown,
  flags: unknown,
  options: StreamOptions,
): StreamOptions {
  check.text('disk', disk)
  const mode = check.flags(flags, VIR_STREAM_DISK_ONE | VIR_STREAM_DISK_START | VIR_STREAM_DISK_STOP)
  if (!modes.includes(mode))
    throw fail(
      'VIR_ERR_INVALID_ARG',
      'exactly one of VIR_STREAM_DISK_ONE, VIR_STREAM_DISK_START and VIR_STREAM_DISK_STOP must be given',
    )
  if (check.count('offset', offset) !== 0 && mode !== VIR_STREAM_DISK_ONE)
    throw fail('VIR_ERR_INVALID_ARG', 'offset must be 0 for continuous streaming')
  return checkStreamOptions(check, options)
}

/** Only what was given, and what was given is legal. */
export function checkStreamOptions(check: Arguments, options: StreamOptions): StreamOptions {
  const { bandwidth, weight, policy, engine, onShutdown, baseTimeout, base, unit, signal } = options
  if (weight !== undefined && (check.count('weight', weight) < 1 || weight > MAX_WEIGHT))
    throw fail('VIR_ERR_INVALID_ARG', `weight must be a whole number from 1 to ${MAX_WEIGHT}, not '${weight}'`)
  if (policy !== undefined && !['full', 'idle'].includes(policy))
    throw fail('VIR_ERR_INVALID_ARG', `policy must be 'full' or 'idle', not '${policy as string}'`)
  if (engine !== undefined && !['auto', 'job', 'pull'].includes(engine))
    throw fail('VIR_ERR_INVALID_ARG', `engine must be 'auto', 'job' or 'pull', not '${engine as string}'`)
  if (onShutdown !== undefined && !['stop', 'continue'].includes(onShutdown))
    throw fail('VIR_ERR_INVALID_ARG', `onShutdown must be 'stop' or 'continue', not '${onShutdown as string}'`)
  if (baseTimeout !== undefined && (check.count('baseTimeout', baseTimeout) === 0 || baseTimeout > 999_999_999))
    throw fail(
      'VIR_ERR_INVALID_ARG',
      `baseTimeout must be a number of seconds from 1 to 999999999, not '${baseTimeout}'`,
    )
  if (unit !== undefined && check.count('unit', unit) === 0)
    throw fail('VIR_ERR_INVALID_ARG', `unit must be at least 1 byte, not '${unit}'`)
  if (signal?.aborted === true)
    throw fail('VIR_ERR_OPERATION_ABORTED', 'the stream was aborted before it began', signal.reason)
  return {
    ...(bandwidth !== undefined && { bandwidth: check.bandwidth(bandwidth, true) }),
    ...(weight !== undefined && { weight }),
    ...(policy !== undefined && { policy }),
    ...(engine !== undefined && { engine }),
    ...(onShutdown !== undefined && { onShutdown }),
    ...(baseTimeout !== undefined && { baseTimeout }),
    ...(base !== undefined && { base: check.text('base', base) }),
    ...(unit !== undefined && { unit }),
    ...(signal !== undefined && { signal }),
  }
}
