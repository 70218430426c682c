/** Numbers for people: three digits that count, and a unit. Files for machines get the numbers themselves. */

/** What stands where there is no number: a run without a first token has no TTFT. */
export const NOTHING = '–';

/** A duration given in milliseconds: `0.42 ms`, `18.3 ms`, `1.25 s`, `2 min 5 s`. */
export function durationText(ms: number | undefined): string {
  if (ms === undefined || !Number.isFinite(ms)) return NOTHING;
  const size = Math.abs(ms);
  if (size < 999.5) return `${threeDigits(ms)} ms`;
  if (size < 119_500) return `${threeDigits(ms / 1000)} s`;
  const seconds = Math.round(size / 1000);
  const sign = ms < 0 ? '-' : '';
  return `${sign}${Math.floor(seconds / 60)} min${seconds % 60 === 0 ? '' : ` ${seconds % 60} s`}`;
}

/** A count with groups of thousands kept together: `12 345`. */
export function countText(count: number | undefined): string {
  if (count === undefined || !Number.isFinite(count)) return NOTHING;
  return String(Math.round(count)).replace(/\B(?=(\d{3})+$)/g, '\u00a0');
}

/** A rate or other plain number with three digits that count. */
export function numberText(value: number | undefined): string {
  if (value === undefined || !Number.isFinite(value)) return NOTHING;
  return Math.abs(value) >= 999.5 ? countText(value) : threeDigits(value);
}

/** A share in 0..1 as percent: `99.95 %`. A share that is not whole is never rounded to 0 % or 100 %. */
export function percentText(share: number | undefined): string {
  if (share === undefined || !Number.isFinite(share)) return NOTHING;
  const percent = share * 100;
  if (percent > 99 && percent < 100) return `${Number(Math.min(99.99, percent).toFixed(2))} %`;
  if (percent > 0 && percent < 0.01) return '< 0.01 %';
  return `${threeDigits(percent)} %`;
}

/** With its sign, for differences: `+3.2 %`. */
export function signedPercentText(share: number | undefined): string {
  if (share === undefined || !Number.isFinite(share)) return NOTHING;
  // Hundredths of a percent are less than any run can tell.
  const percent = Math.abs(share) < 0.1 ? Math.round(share * 1e4) / 100 : share * 100;
  return `${percent > 0 ? '+' : percent < 0 ? '−' : ''}${threeDigits(Math.abs(percent))} %`;
}

/** At most three digits that count, and no zeros at the end of a fraction. */
export function threeDigits(value: number): string {
  const size = Math.abs(value);
  if (size === 0) return '0';
  if (size >= 999.5) return String(Math.round(value));
  if (size < 0.001) return value.toExponential(1);
  const text = value.toPrecision(3);
  return text.includes('.') ? text.replace(/\.?0+$/, '') : text;
}
