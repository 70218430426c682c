/** `manyfold config print` and `manyfold config check`. Called by program.ts. */
import { statSync } from 'node:fs';
import { printConfig } from '../config/describe.js';
import type { ResolvedConfig } from '../config/resolved-config.js';
import { EXIT } from './context.js';
import type { CliContext } from './context.js';

export function showConfig(config: ResolvedConfig, options: { origins: boolean }, { stdout }: CliContext): number {
  stdout.write(printConfig(config, options));
  return EXIT.ok;
}

interface Named {
  readonly what: string;
  readonly path: string;
  readonly kind: 'file' | 'folder' | 'either';
}

/** The paths that an option names. A model without a dot, slash or drive in front may be a hub id: not checked. */
function namedPaths({ model, adapters }: ResolvedConfig): Named[] {
  const paths: Named[] = adapters.modules.map(({ name, path }) => ({
    what: `--adapter ${name}`,
    path,
    kind: 'folder',
  }));
  if (adapters.directory !== undefined) paths.push({ what: '--adapter-dir', path: adapters.directory, kind: 'folder' });
  if (model.chatTemplateFile !== undefined) {
    paths.push({ what: '--chat-template', path: model.chatTemplateFile, kind: 'file' });
  }
  if (model.model !== undefined && (/^([./\\]|[A-Za-z]:\\)/.test(model.model) || model.model.endsWith('.gguf'))) {
    paths.push({ what: '--model', path: model.model, kind: 'either' });
  }
  return paths;
}

function problemWith({ what, path, kind }: Named): string | undefined {
  const stat = statSync(path, { throwIfNoEntry: false });
  if (stat === undefined) return `${what}: ${path} does not exist. Correct the path or create it.`;
  const found = stat.isDirectory() ? 'folder' : 'file';
  if (kind === 'either' || kind === found) return undefined;
  return `${what}: ${path} is a ${found}, but a ${kind} is expected. Correct the path.`;
}

export function checkConfig(config: ResolvedConfig, { stdout, stderr }: CliContext): number {
  const problems = namedPaths(config)
    .map(problemWith)
    .filter((problem) => problem !== undefined);
  if (problems.length > 0) {
    stderr.write(`${problems.join('\n')}\n`);
    return EXIT.usage;
  }
  stdout.write('The configuration is good.\n');
  return EXIT.ok;
}
