/**
 * Methods that are known and cannot be served exactly, each refused with its own reason and mend: what they do to a weight is dense
 * and of full rank, or a part of it is not in the file, or it depends on more than the row's own sequence.
 */
import { ManyfoldError } from '../../core/errors.js';
import { show } from '../config-fields.js';
import type { AdapterImporter } from '../importer.js';
import { isPeftType } from './linear-tensors.js';

const MERGE =
  "Merge it into its base with PEFT's merge_and_unload() where it was trained, and serve the result with --model";

export interface RefusedMethod {
  readonly type: string;
  readonly reason: string;
  readonly mend: string;
}

const dense = (type: string, reason: string): RefusedMethod => ({ type, reason, mend: `${MERGE}, or train a LoRA.` });

export const REFUSED_METHODS: readonly RefusedMethod[] = [
  dense(
    'FOURIERFT',
    'its coefficients stand at places that a seed of torch draws again, and their transform changes every entry of a weight',
  ),
  dense(
    'WAVEFT',
    'its coefficients stand at places that a seed of torch draws again, and their transform changes every entry of a weight',
  ),
  dense(
    'RANDLORA',
    'its change of a weight is a sum of random pairs of full rank, which costs as much as a second base weight',
  ),
  dense(
    'PSOFT',
    'the singular vectors that it rotates are not in the file, and with other signs of them the rotation is another one',
  ),
  dense(
    'ADAMSS',
    'which rows of a weight belong to which subspace is not in the file; it came of a clustering that cannot be repeated',
  ),
  dense(
    'HIRA',
    'it multiplies every entry of the base weight with that of a low-rank matrix, which is dense and of full rank',
  ),
  dense(
    'PEANUT',
    'its change of a weight is what a small network makes of the weight itself, which is dense and of full rank',
  ),
  dense(
    'FROD',
    'it rewrites a weight between rotations of its full width, which costs as much as a second base weight',
  ),
  dense('OSF', 'it rewrites all but a few singular vectors of a weight, which costs as much as a second base weight'),
  {
    type: 'LILY',
    reason: 'its router averages over all tokens of a batch, so that an answer would depend on the requests beside it',
    mend: 'Train a method without a router over the batch, for example a LoRA.',
  },
  {
    type: 'XLORA',
    reason: 'its gates for each token come of a first pass through the base, so that every token is computed twice',
    mend: 'Serve the LoRAs that it blends one by one, each under its own name.',
  },
  {
    type: 'SHADOW',
    reason: 'it runs a second network beside the base, whose state every layer reads and changes',
    mend: 'Train a method that changes the weights of the base, for example a LoRA.',
  },
];

export const refusedMethodsImporter: AdapterImporter = {
  method: 'known methods that are refused with their reason',
  matches: (config) => isPeftType(config, ...REFUSED_METHODS.map(({ type }) => type)),
  compile: ({ config }) => {
    const method = REFUSED_METHODS.find(({ type }) => type === config['peft_type']);
    const { reason = 'it is not served', mend = MERGE } = method ?? {};
    const message = `adapter_config.json: peft_type is ${show(config['peft_type'])}, which cannot be served: ${reason}. ${mend}`;
    return Promise.reject(new ManyfoldError('invalid_adapter', message, { param: 'peft_type' }));
  },
};
