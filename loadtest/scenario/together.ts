/** Rules of a scenario that span several keys. Each returns sentences that end with the mend. Called by read-scenario.ts. */
import type { LengthFields, ScenarioFields } from './schema.js';

export function checkTogether(fields: ScenarioFields): string[] {
  return [
    ...checkEnd(fields.arrivals),
    ...checkPool(fields.adapters),
    ...checkRange('prompt.tokens', fields.prompt.tokens),
    ...checkRange('output.tokens', fields.output.tokens),
    ...checkThinkTime(fields.arrivals),
    ...checkDialect(fields),
  ];
}

function checkEnd(arrivals: ScenarioFields['arrivals']): string[] {
  if (arrivals.kind === 'ramp') {
    if (arrivals.from > 0 || arrivals.to > 0) return [];
    return ['arrivals: from and to are both 0, so nothing would be sent. Raise one of them.'];
  }
  // A trace ends with its last line.
  if (arrivals.kind === 'trace' || arrivals.duration !== undefined || arrivals.requests !== undefined) return [];
  return ['arrivals: nothing says when the run ends. Add duration: 60 (seconds) or requests: 500.'];
}

function checkPool(adapters: ScenarioFields['adapters']): string[] {
  if (adapters.kind === 'none' || adapters.kind === 'weighted') return [];
  const { names, prefix, count, 'from-server': fromServer } = adapters;
  const sources = [names !== undefined, prefix !== undefined, fromServer === true].filter(Boolean).length;
  if (sources !== 1) {
    const found =
      sources === 0 ? 'nothing says which adapters there are' : 'the adapters are given in more than one way';
    return [`adapters: ${found}. Give one of names: [a, b], prefix: tenant- with count: 64, and from-server: true.`];
  }
  if (prefix !== undefined && count === undefined) {
    return ['adapters: prefix needs to know how many names to make. Add count: 64, or list them with names: [a, b].'];
  }
  if (names !== undefined && count !== undefined) {
    return ['adapters: count has no meaning beside names. Delete count.'];
  }
  return [];
}

function checkRange(key: string, lengths: LengthFields): string[] {
  if (typeof lengths === 'number' || !('min' in lengths) || lengths.min <= lengths.max) return [];
  return [`${key}: min ${lengths.min} is above max ${lengths.max}. Swap them.`];
}

function checkThinkTime(arrivals: ScenarioFields['arrivals']): string[] {
  if (arrivals.kind !== 'closed') return [];
  const think = arrivals['think-time'];
  if (typeof think === 'number' || !('min' in think) || think.min <= think.max) return [];
  return [`arrivals.think-time: min ${think.min} is above max ${think.max}. Swap them.`];
}

function checkDialect({ target, output }: ScenarioFields): string[] {
  const { dialect, route } = target;
  const problems: string[] = [];
  if (route === 'generate' && dialect !== 'lorax') {
    problems.push(
      `target.route: generate is a route of LoRAX, and the dialect is ${dialect}. Use chat or completions.`,
    );
  }
  if (target['lora-ids'] !== undefined && dialect !== 'llama-server') {
    problems.push(`target.lora-ids: only llama-server numbers its adapters, and the dialect is ${dialect}. Delete it.`);
  }
  if (target['adapter-source'] !== undefined && dialect !== 'lorax') {
    problems.push(`target.adapter-source: only LoRAX asks for it, and the dialect is ${dialect}. Delete it.`);
  }
  if (dialect === 'openai' && output['ignore-eos']) {
    problems.push(
      'output.ignore-eos: the plain OpenAI API has no such field, so answers may be shorter than asked. ' +
        'Write ignore-eos: false, or another dialect.',
    );
  }
  return problems;
}
