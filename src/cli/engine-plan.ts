/** From the user's settings and the model's shape to the sizes that the engine is made with. Pure. Called by compose.ts. */
import type { EngineSettings } from '../config/resolved-config.js';
import type { Checkpoint } from '../checkpoint/checkpoint.js';
import { humanBytes } from './human-bytes.js';
import { ManyfoldError } from '../core/errors.js';
import type { EngineLimits } from '../engine/in-process-engine.js';
import type { LoadOptions, NativeInfo } from '../native/binding-types.js';

/** Logits entries beyond one for each sequence: room for scoring prompts without holding up those that decode. */
const SCORING_ENTRIES = 64;

export interface EnginePlan {
  readonly native: Pick<
    LoadOptions,
    'dtype' | 'threads' | 'isa' | 'backend' | 'kvPages' | 'maxRows' | 'maxEntries' | 'kvCacheDtype'
  >;
  readonly engine: EngineLimits;
  /** Tokens that the KV pool holds. */
  readonly kvTokens: number;
}

/**
 * What `--dtype auto` means for a file whose linears are mostly of `fileDtype` (Checkpoint.fileDtype): its own precision
 * class, or bf16 where kernels for it are lacking. Never fewer bits than the file has.
 */
export function ownDtype(fileDtype: string): LoadOptions['dtype'] {
  if (['q4_0', 'q4_1', 'q4_k'].includes(fileDtype)) return 'q4';
  return fileDtype === 'q8_0' ? 'int8' : 'bf16';
}

/** Throws 'invalid_config' when this build lacks the backend, or the backend what is asked of it. */
function checkBackend({ backend, dtype, kvCacheDtype }: EngineSettings, { backends }: NativeInfo): void {
  if (!backends.includes(backend)) {
    throw new ManyfoldError(
      'invalid_config',
      `--backend ${backend} is not in this build, which has ${backends.join(', ')}. ` +
        'Install the CUDA 13 toolkit and build with MANYFOLD_BUILD=cuda npm run build, or leave the option out.',
      { param: 'backend' },
    );
  }
  if (backend === 'cpu') return;
  if (dtype === 'int8' || dtype === 'q4') {
    throw new ManyfoldError(
      'invalid_config',
      `--dtype ${dtype} has no kernels in the cuda backend. Choose bf16 or f32, or the cpu backend.`,
      { param: 'dtype' },
    );
  }
  if (kvCacheDtype === 'int8') {
    throw new ManyfoldError(
      'invalid_config',
      '--kv-cache-dtype int8 has no kernels in the cuda backend. Choose auto, or the cpu backend.',
      { param: 'kv-cache-dtype' },
    );
  }
}

/** Throws 'invalid_config' when the KV pool cannot hold what was asked for. */
export function enginePlan(
  settings: EngineSettings,
  { config: model, fileDtype }: Pick<Checkpoint, 'config' | 'fileDtype'>,
  native: NativeInfo,
): EnginePlan {
  checkBackend(settings, native);
  const own = settings.backend === 'cuda' ? 'bf16' : ownDtype(fileDtype);
  const dtype = settings.dtype === 'auto' ? own : settings.dtype;
  const { pageTokens } = native;
  const { kvCacheDtype } = settings;
  // int8: a byte a value and a float32 scale a head.
  const plainBytes = model.headDim * (dtype === 'f32' ? 4 : 2);
  const headBytes = kvCacheDtype === 'int8' ? model.headDim + 4 : plainBytes;
  const pageBytes = 2 * model.layers.length * model.numKvHeads * headBytes * pageTokens;
  const maxRows = Math.max(settings.maxNumBatchedTokens, settings.maxNumSeqs);
  // Every entry reads a row of its own.
  const maxEntries = Math.min(settings.maxNumSeqs + SCORING_ENTRIES, maxRows);
  // More pages than all sequences at full length can hold would never be used, but for what may be reused.
  const longest = settings.maxModelLen ?? model.maxPositions;
  const useful = settings.maxNumSeqs * Math.ceil(Math.min(longest, model.maxPositions) / pageTokens);
  const kvPages = Math.min(Math.floor(settings.kvBytes / pageBytes), settings.prefixCache ? 2 * useful : useful);
  const kvTokens = kvPages * pageTokens;
  const maxModelLen = settings.maxModelLen ?? Math.min(model.maxPositions, kvTokens);
  if (maxModelLen > model.maxPositions) {
    throw new ManyfoldError(
      'invalid_config',
      `--max-model-len ${maxModelLen} is more than the ${model.maxPositions} tokens that the model was made for. Lower it, or leave it out.`,
      { param: 'max-model-len' },
    );
  }
  if (kvPages === 0 || maxModelLen > kvTokens) {
    const needed = Math.ceil(Math.max(maxModelLen, 1) / pageTokens) * pageBytes;
    throw new ManyfoldError(
      'invalid_config',
      `--kv-bytes ${humanBytes(settings.kvBytes)} holds ${kvTokens} tokens, but one sequence may have ${Math.max(maxModelLen, 1)}. ` +
        `Give at least ${humanBytes(needed)}, or lower --max-model-len.`,
      { param: 'kv-bytes' },
    );
  }
  return {
    native: {
      dtype,
      threads: settings.threads,
      isa: settings.isa,
      backend: settings.backend,
      kvPages,
      maxRows,
      maxEntries,
      kvCacheDtype,
    },
    engine: {
      maxModelLen,
      maxNumSeqs: settings.maxNumSeqs,
      maxQueue: settings.maxQueue,
      maxRows,
      maxEntries,
      maxChunk: maxRows,
      kvPages,
      pageTokens,
      prefixCache: settings.prefixCache,
    },
    kvTokens,
  };
}
