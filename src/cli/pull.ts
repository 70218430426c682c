/** `manyfold pull`: brings a model into the cache without serving it. Called by program.ts. */
import type { OptionKey } from '../config/options.js';
import type { ModelSettings } from '../config/resolved-config.js';
import { EXIT } from './context.js';
import type { CliContext } from './context.js';

/** What pull takes of serve's options. */
export const PULL_OPTIONS: readonly OptionKey[] = ['model', 'cacheDir', 'hubEndpoint', 'hubToken', 'revision'];

/** Progress goes to stderr, the path of the file or folder to stdout, so that a script can take it. */
export async function pull(settings: ModelSettings, { fetchModel, stdout }: CliContext): Promise<number> {
  stdout.write(`${await fetchModel(settings)}\n`);
  return EXIT.ok;
}
