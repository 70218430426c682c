/** From what `--model` says to a path on this machine: as it is, from the cache, or downloaded. Called by pull and serve. */
import { existsSync } from 'node:fs';
import { resolve } from 'node:path';
import type { ModelSettings } from '../config/resolved-config.js';
import { systemClock } from '../core/clock.js';
import { ManyfoldError } from '../core/errors.js';
import { ensureDefaultModel } from '../download/default-model.js';
import { pullModel } from '../download/hub.js';
import { parseModelReference } from '../download/model-reference.js';
import { createProgress } from '../download/progress.js';
import type { Output } from './context.js';

/** A path that exists wins over a hub id of the same spelling. Progress goes to `stderr`. */
export async function fetchModel(settings: ModelSettings, stderr: Output): Promise<string> {
  const { model, cacheDir, hubEndpoint, hubToken } = settings;
  if (model === undefined) {
    return ensureDefaultModel({ cacheDir, onLine: (line) => void stderr.write(`${line}\n`) });
  }
  if (existsSync(model)) return resolve(model);
  const reference = parseModelReference(model);
  if (reference === undefined) {
    throw new ManyfoldError(
      'invalid_config',
      `--model ${model} is neither a file or folder of this machine nor a hub id such as Qwen/Qwen3-0.6B. ` +
        'Correct the path or the id.',
    );
  }
  const token = hubToken === undefined ? {} : { token: hubToken.reveal() };
  const progress = createProgress(stderr, systemClock);
  const wanted = { ...reference, revision: revisionOf(model, reference.revision, settings.revision) };
  return pullModel(wanted, { endpoint: hubEndpoint, cacheDir, ...token, clock: systemClock, progress });
}

/** `owner/name@revision` names it beside the model; --revision names it apart. Two different ones are a mistake. */
function revisionOf(model: string, inModel: string, option: string): string {
  if (!model.includes('@')) return option;
  if (option === 'main' || option === inModel) return inModel;
  throw new ManyfoldError(
    'invalid_config',
    `--model ${model} and --revision ${option} name two revisions. Drop one of them.`,
  );
}
