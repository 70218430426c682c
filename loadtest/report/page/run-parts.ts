/** Sections of report.html that are words and tables: errors, server, client, how to repeat the run, definitions. */
import { htmlTable } from '../html-table.js';
import { LATENCY_MEANINGS, LATENCY_NAMES, OUTCOME_MEANINGS } from '../labels.js';
import type { Child } from '../markup.js';
import { element, fragment } from '../markup.js';
import { countText, durationText, numberText, percentText } from '../number-text.js';
import { highest } from '../plot/slices.js';
import type { LatencyKey, RunReport, ServerSample } from '../run-report.js';
import { errorKinds } from '../table.js';
import { plainText } from '../text-table.js';
import { facts } from './page.js';

type Block = (child: Child) => Child;
/** Different texts of one kind of failure that are shown. */
const TEXTS = 5;
/** Characters of a scenario; a file with thousands of names would be most of the page. */
const SCENARIO_LENGTH = 50_000;

export function errorTable({ total, requests }: RunReport, block: Block): Child {
  const kinds = errorKinds(total);
  if (kinds.length === 0) return element('p', {}, 'No measured request failed.');
  const failed = requests.filter(({ phase, outcome }) => phase === 'measured' && outcome !== 'ok');
  const rows = kinds.map(([outcome, count]) => {
    const own = failed.filter((request) => request.outcome === outcome);
    const texts = [...new Set(own.flatMap(({ errorText }) => (errorText === null ? [] : [plainText(errorText)])))];
    const statuses = [...new Set(own.flatMap(({ status }) => status ?? []))].sort((one, other) => one - other);
    return [
      outcome.replaceAll('_', ' '),
      countText(count),
      percentText(count / total.requests),
      statuses.join(', '),
      [
        element('div', { class: 'soft' }, OUTCOME_MEANINGS[outcome]),
        texts.slice(0, TEXTS).map((text) => element('div', {}, element('code', {}, text))),
        texts.length > TEXTS
          ? element('div', { class: 'soft' }, `and ${countText(texts.length - TEXTS)} other texts`)
          : undefined,
      ],
    ];
  });
  const columns = [
    { title: 'kind' },
    { title: 'requests' },
    { title: 'share' },
    { title: 'status' },
    { title: 'meaning and what the server said', kind: 'text' as const },
  ];
  return block(htmlTable('Measured requests that did not end well. Latencies are of the others.', columns, rows));
}

export function serverFacts({ server }: RunReport, block: Block): Child {
  if (server === null) {
    return element(
      'p',
      {},
      'The target has no readable /metrics: queue, KV memory and resident adapters are not known.',
    );
  }
  const most = (pick: (sample: ServerSample) => number | null): number | undefined =>
    highest(server.samples.map(pick)) ?? undefined;
  return fragment(
    facts([
      ['metrics', element('code', {}, plainText(server.metricsUrl))],
      ['names of', server.flavour],
      ['scrapes', `${countText(server.samples.length)}, and ${countText(server.failedScrapes)} that failed`],
      ['running, at most', countText(most(({ running }) => running))],
      ['waiting, at most', countText(most(({ waiting }) => waiting))],
      ['KV memory in use, at most', percentText(most(({ kvUsageShare }) => kvUsageShare))],
      ['adapters resident, at most', countText(most(({ adaptersResident }) => adaptersResident))],
      ['preemptions', countText(most(({ preemptions }) => preemptions))],
    ]),
    server.disagreements.length === 0
      ? element('p', {}, 'Client and server agree on every figure that both know.')
      : block(disagreementTable(server.disagreements)),
  );
}

function disagreementTable(disagreements: NonNullable<RunReport['server']>['disagreements']): Child {
  return htmlTable(
    'Where client and server disagree by more than the tolerance.',
    [
      { title: 'figure' },
      { title: 'client' },
      { title: 'server' },
      { title: 'tolerance' },
      { title: 'what may lie behind it', kind: 'text' },
    ],
    disagreements.map(({ what, unit, client, server, toleranceShare, message }) => [
      `${what}, ${unit}`,
      numberText(client),
      numberText(server),
      percentText(toleranceShare),
      message,
    ]),
  );
}

export function clientFacts({ client }: RunReport): Child {
  const { eventLoopLagMs: lag } = client;
  return fragment(
    client.wasLimit
      ? element(
          'p',
          { class: 'bad-text' },
          'The load generator was itself a limit of this run; its figures are partly its own.',
        )
      : element('p', {}, 'The load generator was not the limit.'),
    facts([
      [
        'event-loop lag',
        `p50 ${durationText(lag.p50)}, p99 ${durationText(lag.p99)}, p99.9 ${durationText(lag.p999)}, highest ${durationText(lag.max)}`,
      ],
      ['CPU of one core', `${percentText(client.cpuShareMean)} on average, ${percentText(client.cpuShareMax)} at most`],
      ['memory, at most', `${numberText(client.memoryMaxBytes / 2 ** 20)} MiB`],
    ]),
  );
}

export function repetition({ run, trace, requests }: RunReport): Child {
  const { machine, versions } = run;
  return fragment(
    element('pre', {}, plainText(run.command)),
    facts([
      ['seed', String(run.seed)],
      [
        'trace',
        [
          element('code', {}, trace.sha256),
          `, ${countText(requests.length)} requests, generator ${trace.generatorVersion}`,
        ],
      ],
      ['versions', `Manyfold ${versions.manyfold}, Node ${versions.node}, undici ${versions.undici}`],
      ['server', plainText(versions.server ?? 'does not say')],
      [
        'client machine',
        `${plainText(machine.cpuModel)}, ${machine.cpuCount} CPUs, ${numberText(machine.memoryBytes / 2 ** 30)} GiB, ${machine.platform} ${machine.arch}`,
      ],
    ]),
    element(
      'details',
      {},
      element('summary', {}, `The scenario, ${plainText(run.scenarioPath)}`),
      element('pre', {}, run.scenarioText.slice(0, SCENARIO_LENGTH)),
      run.scenarioText.length > SCENARIO_LENGTH ? element('p', {}, 'The rest is in report.json.') : undefined,
    ),
  );
}

export function definitions(): Child {
  const keys = Object.keys(LATENCY_MEANINGS) as LatencyKey[];
  return facts([
    ...keys.map((key) => [LATENCY_NAMES[key], LATENCY_MEANINGS[key]] as const),
    ['goodput', 'requests a second that kept every limit of the SLO'],
    ['p99', 'nearest rank: 99 % of the values are at or below it'],
    [
      'valid',
      'at least 95 % of the asked rate was sent and completed, and nothing else took the figures their meaning',
    ],
  ]);
}
