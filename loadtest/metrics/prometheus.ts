/** Prometheus' text format, version 0.0.4 and OpenMetrics alike: lines → samples. What is no sample is passed over. Pure. */
export interface Sample {
  readonly name: string;
  readonly labels: Readonly<Record<string, string>>;
  readonly value: number;
}

const NAME = /^[A-Za-z_:][\w:]*/;
const LABEL = /\s*([A-Za-z_]\w*)\s*=\s*"((?:[^"\\]|\\.)*)"\s*(,|(?=\}))/y;

export function parsePrometheus(text: string): Sample[] {
  const samples: Sample[] = [];
  for (const raw of text.split('\n')) {
    const sample = parseLine(raw.trim());
    if (sample !== undefined) samples.push(sample);
  }
  return samples;
}

function parseLine(line: string): Sample | undefined {
  const name = NAME.exec(line)?.[0];
  if (name === undefined) return undefined;
  let at = name.length;
  const labels: Record<string, string> = {};
  if (line[at] === '{') {
    at++;
    for (LABEL.lastIndex = at; at < line.length; at = LABEL.lastIndex) {
      const match = LABEL.exec(line);
      if (match === null) break;
      labels[match[1] ?? ''] = unescape(match[2] ?? '');
    }
    const close = /^\s*\}/.exec(line.slice(at));
    if (close === null) return undefined;
    at += close[0].length;
  }
  // A time stamp or an exemplar may stand behind the value.
  const [word = ''] = line.slice(at).trim().split(/\s/);
  const value = numberOf(word);
  return value === undefined ? undefined : { name, labels, value };
}

function unescape(text: string): string {
  return text.replace(/\\(.)/g, (_, char: string) => (char === 'n' ? '\n' : char));
}

function numberOf(word: string): number | undefined {
  if (/^[+]?Inf$/i.test(word)) return Infinity;
  if (/^-Inf$/i.test(word)) return -Infinity;
  if (/^NaN$/i.test(word)) return NaN;
  if (word === '' || !/^[-+\d.]/.test(word)) return undefined;
  const value = Number(word);
  return Number.isNaN(value) ? undefined : value;
}
