/** Rules that span several options. Each returns sentences that end with the mend. Called by load-config.ts. */
import type { OptionValues } from './options.js';

/** 127.0.0.0/8, ::1 and the names of this machine's own loopback. */
export function isLoopback(host: string): boolean {
  const bare = host.toLowerCase().replace(/^\[|\]$/g, '');
  if (bare === 'localhost' || bare.endsWith('.localhost') || bare === '::1') return true;
  return /^(::ffff:)?127(\.\d{1,3}){3}$/.test(bare);
}

function checkAccess(values: OptionValues, keyCount: number): string[] {
  const problems: string[] = [];
  if (!isLoopback(values.host) && keyCount === 0 && !values.insecureNoAuth) {
    problems.push(
      `--host ${values.host} listens beyond this machine, and no API key is set, so anyone could use the server. ` +
        'Give --api-key-file FILE or --api-key KEY, listen on 127.0.0.1, or accept the risk with --insecure-no-auth.',
    );
  }
  if (values.insecureNoAuth && keyCount > 0) {
    problems.push(
      '--insecure-no-auth and API keys are both given, and mean the opposite. Drop --insecure-no-auth to ask for the ' +
        'keys, or drop the keys.',
    );
  }
  return problems;
}

function duplicates(names: readonly string[]): string[] {
  return [...new Set(names.filter((name, index) => names.indexOf(name) !== index))];
}

function checkNames({ adapter, servedModelName }: OptionValues): string[] {
  const adapterNames: string[] = adapter.map((module) => module.name);
  return [
    ...duplicates(adapterNames).map((name) => `--adapter names '${name}' twice. Give each adapter its own name.`),
    ...duplicates(servedModelName).map((name) => `--served-model-name has '${name}' twice. Drop one of them.`),
    ...servedModelName
      .filter((name) => adapterNames.includes(name))
      .map((name) => `'${name}' is both a --served-model-name and an --adapter. Rename one of them.`),
  ];
}

/** All broken rules; `keyCount` counts the keys of flags and of the key file together. */
export function checkTogether(values: OptionValues, keyCount: number): string[] {
  const problems = [...checkAccess(values, keyCount), ...checkNames(values)];
  if (values.enableRuntimeLora && values.adapterDir === undefined) {
    problems.push(
      '--enable-runtime-lora needs to know the folder that adapters may be loaded from. Add --adapter-dir DIR.',
    );
  }
  if (values.maxNumBatchedTokens < values.maxNumSeqs) {
    problems.push(
      `--max-num-batched-tokens ${values.maxNumBatchedTokens} is less than --max-num-seqs ${values.maxNumSeqs}, but ` +
        `each running sequence takes one token of a step. Raise the first or lower the second.`,
    );
  }
  return problems;
}
