/**
 * `manyfold adapters compress --sweep`: many densities and scales of one adapter on its base, each compared with the
 * uncompressed adapter over a small committed text. The paper chooses k and α in this way, on validation data of the task
 * (ComPEFT, section 3); this text only tells which points keep what the adapter says. Called by adapters-compress.ts.
 */
import { DEFAULT_ADAPTER_LIMITS } from '../adapters/adapter-folder.js';
import type { AdapterFolder } from '../adapters/adapter-folder.js';
import { nativeBaseWeights } from '../adapters/base-weights.js';
import { compileAdapter } from '../adapters/compile-adapter.js';
import { compressedFolder, compressSource } from '../adapters/compeft/compress.js';
import type { CompressSource } from '../adapters/compeft/read-source.js';
import type { Alpha, Scope } from '../adapters/compeft/ternarise.js';
import type { ImportContext } from '../adapters/importer.js';
import { compeftImporter } from '../adapters/importers/compeft.js';
import { toNativeTerms } from '../adapters/native-terms.js';
import { adapterVersion } from '../adapters/version.js';
import { openCheckpoint } from '../checkpoint/open-checkpoint.js';
import type { Checkpoint } from '../checkpoint/checkpoint.js';
import { loadConfig } from '../config/load-config.js';
import type { TermSet } from '../core/terms.js';
import type { NativeEngine } from '../native/binding-types.js';
import { loadNative } from '../native/load-binding.js';
import { toNativeModel } from '../native/native-model.js';
import { createTokenizer } from '../text/tokenizer.js';
import type { CliContext } from './context.js';
import { humanBytes } from './human-bytes.js';
import { forEachLogits } from './raw-logits.js';
import { SWEEP_TEXT } from './sweep-text.js';

const DENSITIES: readonly number[] = [0.05, 0.1, 0.2, 0.3, 0.5];
const ALPHAS: readonly Alpha[] = [0.5, 1, 2, 3, 5, 'auto'];
const CHUNK = 64;

export interface SweepOptions {
  readonly source: CompressSource;
  readonly folder: AdapterFolder;
  readonly scope: Scope;
  /** Path or id of the base. */
  readonly base: string;
}

/** Prints a table, one line a point, and the point that is nearest to the adapter for each density. */
export async function sweep(options: SweepOptions, context: CliContext): Promise<void> {
  const { model } = loadConfig([options.base], context.env, context.readFile);
  const checkpoint = await openCheckpoint(await context.fetchModel(model));
  const tokenizer = await createTokenizer(checkpoint.text);
  const encoded = await tokenizer.encode(SWEEP_TEXT, { addSpecialTokens: true });
  const tokens = encoded.slice(0, checkpoint.config.maxPositions);
  const { engine, pageTokens } = await openEngine(checkpoint, tokens.length);
  try {
    const limits = DEFAULT_ADAPTER_LIMITS;
    const bench = new Bench(
      { engine, pageTokens, tokens },
      { model: checkpoint.config, base: nativeBaseWeights(engine), limits },
    );
    await printTable(bench, options, checkpoint, context);
  } finally {
    engine.dispose();
  }
}

async function openEngine(
  checkpoint: Checkpoint,
  tokens: number,
): Promise<{ engine: NativeEngine; pageTokens: number }> {
  const native = loadNative();
  const { pageTokens } = native.info();
  const engine = await native.createEngine({
    model: toNativeModel(checkpoint.config),
    files: checkpoint.files,
    weights: checkpoint.weights,
    dtype: 'bf16',
    threads: 0,
    isa: 'auto',
    backend: 'cpu',
    kvPages: Math.ceil(tokens / pageTokens),
    maxRows: CHUNK,
    maxEntries: CHUNK,
  });
  return { engine, pageTokens };
}

async function printTable(
  bench: Bench,
  options: SweepOptions,
  checkpoint: Checkpoint,
  { stdout }: CliContext,
): Promise<void> {
  const { source, folder, scope } = options;
  const version = await adapterVersion(folder, checkpoint.fingerprint);
  const whole = await compileAdapter(
    { version, directory: folder.directory },
    { ...bench.context, baseFingerprint: checkpoint.fingerprint },
  );
  const reference = await bench.reference(whole.terms);
  stdout.write(`Uncompressed: perplexity ${reference.perplexity.toFixed(3)} over ${reference.tokens} tokens.\n\n`);
  stdout.write('| density | alpha | size | bits a value | perplexity | KL to the adapter | emptied |\n');
  stdout.write('|---:|---:|---:|---:|---:|---:|---:|\n');
  for (const density of DENSITIES) {
    for (const alpha of ALPHAS) {
      const compressed = compressSource(source, folder, { density, alpha, scope });
      const { payload, parameters, emptied } = compressed;
      const { terms } = await compeftImporter.compile(compressedFolder(compressed, folder), bench.context);
      const { perplexity, kl } = await bench.compare(terms);
      const cells = [density, alpha, humanBytes(payload.length), ((8 * payload.length) / parameters).toFixed(3)];
      stdout.write(`| ${[...cells, perplexity.toFixed(3), kl.toExponential(2), emptied.length].join(' | ')} |\n`);
    }
  }
}

interface Text {
  readonly engine: NativeEngine;
  readonly pageTokens: number;
  readonly tokens: readonly number[];
}

/** Runs the text under term sets, and remembers what the uncompressed adapter said. */
class Bench {
  readonly #log: Float32Array[] = [];

  constructor(
    private readonly text: Text,
    readonly context: ImportContext,
  ) {}

  async reference(set: TermSet): Promise<{ perplexity: number; tokens: number }> {
    let loss = 0;
    await this.#run(set, (log, position) => {
      this.#log.push(log);
      loss -= log[this.text.tokens[position + 1] ?? 0] ?? 0;
    });
    return { perplexity: Math.exp(loss / this.#log.length), tokens: this.#log.length };
  }

  /** Perplexity, and the mean KL divergence of the set's next-token distributions from the reference's. */
  async compare(set: TermSet): Promise<{ perplexity: number; kl: number }> {
    let [loss, divergence] = [0, 0];
    await this.#run(set, (log, position) => {
      const reference = this.#log[position] ?? log;
      loss -= log[this.text.tokens[position + 1] ?? 0] ?? 0;
      for (let i = 0; i < log.length; i += 1) {
        const p = reference[i] as number;
        divergence += Math.exp(p) * (p - (log[i] as number));
      }
    });
    return { perplexity: Math.exp(loss / this.#log.length), kl: divergence / this.#log.length };
  }

  /** Log-probabilities after every token but the last, which nothing follows. */
  async #run(set: TermSet, row: (log: Float32Array, position: number) => void): Promise<void> {
    const { engine, tokens } = this.text;
    const terms = await engine.loadTerms(toNativeTerms(set));
    try {
      await forEachLogits({ ...this.text, terms, chunk: CHUNK }, (logits, position) => {
        if (position + 1 < tokens.length) row(logProbabilities(logits), position);
      });
    } finally {
      engine.freeTerms(terms);
    }
  }
}

function logProbabilities(logits: Float32Array): Float32Array {
  let max = -Infinity;
  for (const value of logits) max = Math.max(max, value);
  let sum = 0;
  for (const value of logits) sum += Math.exp(value - max);
  const shift = max + Math.log(sum);
  return logits.map((value) => value - shift);
}
