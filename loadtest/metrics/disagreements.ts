/** Where the server's own figures and the client's differ by more than counting at two ends explains. Pure. */
import type { Disagreement, RequestRecord } from '../report/run-report.js';
import type { ScrapedRun } from './scraper.js';
import type { ServerState } from './server-metrics.js';

interface Claim {
  readonly what: string;
  readonly unit: string;
  readonly client: number;
  readonly server: number | null;
  readonly toleranceShare: number;
  /** Differences below this are no news, whatever their share. */
  readonly toleranceAbsolute: number;
  readonly message: string;
}

/** All requests of the run count, warm-up too: the server cannot tell them apart. */
export function findDisagreements(records: readonly RequestRecord[], scraped: ScrapedRun): Disagreement[] {
  return claims(records, scraped).flatMap(({ toleranceAbsolute, server, ...claim }): Disagreement[] => {
    if (server === null) return [];
    const difference = Math.abs(server - claim.client);
    const reference = Math.max(Math.abs(server), Math.abs(claim.client));
    if (difference <= toleranceAbsolute || difference <= claim.toleranceShare * reference) return [];
    return [{ ...claim, server }];
  });
}

function claims(records: readonly RequestRecord[], { first, last }: ScrapedRun): Claim[] {
  const ok = records.filter(({ outcome }) => outcome === 'ok');
  const delta = (key: keyof ServerState): number | null => {
    const [begin, end] = [first[key], last[key]];
    return begin === null || end === null ? null : end - begin;
  };
  const sum = (value: (record: RequestRecord) => number): number =>
    records.reduce((total, record) => total + value(record), 0);
  const ttft = ok.flatMap(({ firstTokenAtMs, sentAtMs }) =>
    firstTokenAtMs === null || sentAtMs === null ? [] : [firstTokenAtMs - sentAtMs],
  );
  const meanTtft = ttft.length === 0 ? null : ttft.reduce((total, value) => total + value, 0) / ttft.length;
  const [seconds, count] = [delta('ttftSeconds'), delta('ttftCount')];
  const found: Claim[] = [
    {
      what: 'output tokens',
      unit: 'tokens',
      client: sum(({ outputTokens }) => outputTokens),
      server: delta('outputTokens'),
      toleranceShare: 0.02,
      toleranceAbsolute: 2,
      message:
        'The server generated another number of tokens than reached this client: other clients, tokens of requests that ' +
        'broke off, or tokens without text.',
    },
    {
      what: 'requests done',
      unit: 'requests',
      client: ok.length,
      server: delta('requestsDone'),
      toleranceShare: 0.01,
      toleranceAbsolute: 1,
      message: 'The server finished another number of requests: other clients, or answers that broke off on the way.',
    },
  ];
  if (meanTtft !== null && seconds !== null && count !== null && count > 0) {
    found.push({
      what: 'mean time to first token',
      unit: 'ms',
      client: meanTtft,
      server: (seconds * 1000) / count,
      toleranceShare: 0.1,
      toleranceAbsolute: 5,
      message:
        'The server counts from when it takes a request up; the difference is the way there and back, a queue that it does ' +
        'not count, or the client.',
    });
  }
  return found;
}
