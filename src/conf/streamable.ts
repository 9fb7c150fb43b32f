/** What stands against streaming a disk, whoever runs it. */
import { failFrom } from '../error.js'

const fail = failFrom('VIR_FROM_QEMU')

const STREAMABLE_FORMATS = ['qcow2', 'qed']

/** The image whose backing chain is to be streamed. VIR_ERR_OPERATION_INVALID or VIR_ERR_CONFIG_UNSUPPORTED when there is nothing to stream. */
export function checkStreamable<Source extends { format?: string; backingStore?: unknown }>(disk: {
  target: string
  device: string
  readonly: boolean
  source?: Source
}): Source {
  const { target, source } = disk
  if (source === undefined) throw fail('VIR_ERR_OPERATION_INVALID', `disk '${target}' has no medium`)
  if (disk.device !== 'disk' && disk.device !== 'lun')
    throw fail('VIR_ERR_OPERATION_INVALID', `disk '${target}' is a '${disk.device}' and cannot be streamed`)
  if (disk.readonly) throw fail('VIR_ERR_OPERATION_INVALID', `disk '${target}' is read-only`)
  if (!source.backingStore) {
    const format = source.format ?? 'raw'
    if (!STREAMABLE_FORMATS.includes(format))
      throw fail(
        'VIR_ERR_CONFIG_UNSUPPORTED',
        `disk '${target}' has format '${format}', which has no backing image to stream from`,
      )
    throw fail('VIR_ERR_OPERATION_INVALID', `disk '${target}' has no backing image, there is nothing to stream`)
  }
  return source
}
